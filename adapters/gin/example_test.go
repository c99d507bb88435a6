package sqlreqgin_test

import (
	"errors"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq"
	sqlreqgin "github.com/sqlreq/sqlreq/adapters/gin"
)

// The line of sqlreq's README.md. What looks at the answer is named before Wrap.
func ExampleWrap() {
	engine, reg := gin.New(), new(sqlreq.Registry)
	engine.Use(gin.Logger(), gin.Recovery(), sqlreqgin.Wrap(reg.Middleware))
	engine.POST("/notes", func(c *gin.Context) {
		if err := save(c); err != nil {
			c.AbortWithError(500, err) // rolls back, as c.Error(err) does
		}
	})
}

func save(c *gin.Context) error {
	_, err := sqlreq.DefaultKey.ExecContext(c.Request.Context(), `INSERT INTO notes VALUES (?)`, c.PostForm("text"))
	if err == nil && c.PostForm("text") == "" {
		err = errors.New("a note is empty")
		c.Error(err)
	}
	return err
}
