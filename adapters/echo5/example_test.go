package sqlreqecho5_test

import (
	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"

	"github.com/sqlreq/sqlreq"
	sqlreqecho5 "github.com/sqlreq/sqlreq/adapters/echo5"
)

// The line of sqlreq's README.md. What looks at the answer is named before Wrap.
func ExampleWrap() {
	e, reg := echo.New(), new(sqlreq.Registry)
	e.Use(middleware.Recover(), sqlreqecho5.Wrap(reg.Middleware))
	e.POST("/notes", func(c *echo.Context) error {
		_, err := sqlreq.DefaultKey.ExecContext(c.Request().Context(), `INSERT INTO notes VALUES (?)`, c.FormValue("text"))
		return err
	})
}
