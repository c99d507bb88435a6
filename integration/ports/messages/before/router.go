package server

import (
	"database/sql"
	"net/http"

	"github.com/gin-gonic/gin"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/sqlreq/sqlreq/integration/ports/messages"
)

// New returns the program. The functions are told of each new user; the first one is that of the plugins.
func New(pool *sql.DB, notifier messages.Notifier, userAdded ...func(userID uint) error) (http.Handler, error) {
	pool.SetMaxOpenConns(1) // SQLite cannot handle writes side by side
	db, err := gorm.Open(sqlite.New(sqlite.Config{Conn: pool}), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return nil, err
	}
	if err := db.AutoMigrate(messages.Models...); err != nil {
		return nil, err
	}
	database := &GormDatabase{db}
	plugins := func(userID uint) error { return database.CreatePluginConf(userID) }
	api := &API{database, notifier, append([]func(uint) error{plugins}, userAdded...)}
	auth := &Auth{database}

	g := gin.New()
	g.Use(gin.Recovery(), messages.Errors)
	g.NoRoute(func(c *gin.Context) {
		c.JSON(404, &messages.Error{Error: "Not Found", ErrorCode: 404, ErrorDescription: "page not found"})
	})
	g.Use(func(c *gin.Context) {
		c.Header("Content-Type", "application/json")
		c.Header("Access-Control-Allow-Origin", "*")
	})

	g.POST("/message", auth.RequireApplication, api.CreateMessage)
	client := g.Group("/", auth.RequireClient)
	client.GET("/message", api.GetMessages)
	client.POST("/user", api.CreateUser)
	client.DELETE("/user/:id", api.DeleteUser)
	client.GET("/application", api.GetApplications)
	client.POST("/application", api.CreateApplication)
	client.POST("/application/import", api.ImportApplication)
	client.PUT("/application/:id", api.RenameApplication)
	client.DELETE("/application/:id", api.DeleteApplication)
	return g, nil
}
