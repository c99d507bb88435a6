// Package messages is what the editions of a program have in common: its models and its form of errors. It is written in
// the shape of the server of Gotify (https://github.com/gotify/server, MIT License): gin, gorm, and on SQLite a pool of
// one connection. Its import of an application begins and ends a transaction by hand, in the shape of AddInbound in
// 3x-ui (https://github.com/MHSanaei/3x-ui, GPL-3.0), which has gin, gorm and SQLite too; no code is taken from there. The new name of
// an application is stored as the documentation of gorm controls a transaction by hand
// (https://gorm.io/docs/transactions.html).
package messages

import (
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

// User owns applications.
type User struct {
	ID   uint   `gorm:"primaryKey" json:"id"`
	Name string `gorm:"unique" json:"name"`
}

// Client is a token by which a user is known.
type Client struct {
	ID       uint   `gorm:"primaryKey"`
	Token    string `gorm:"unique"`
	UserID   uint
	LastUsed *time.Time
}

// Application sends messages to its user.
type Application struct {
	ID      uint   `gorm:"primaryKey" json:"id"`
	Token   string `gorm:"unique" json:"token"`
	UserID  uint   `json:"-"`
	Name    string `json:"name"`
	SortKey int    `json:"sortKey"`
}

// Message is what an application has sent.
type Message struct {
	ID            uint   `gorm:"primaryKey" json:"id"`
	ApplicationID uint   `json:"appid"`
	Message       string `json:"message"`
}

// PluginConf is that of a plugin for a user.
type PluginConf struct {
	ID     uint `gorm:"primaryKey"`
	UserID uint
}

// Export is an application with its messages.
type Export struct {
	Name     string   `json:"name" binding:"required"`
	Token    string   `json:"token" binding:"required"`
	Messages []string `json:"messages"`
}

// Models are those of the tables.
var Models = []any{&User{}, &Client{}, &Application{}, &Message{}, &PluginConf{}}

// Notifier sends a message to the clients of a user.
type Notifier interface {
	Notify(userID uint, message *Message)
}

// Error is what a client is told of an error.
type Error struct {
	Error            string `json:"error"`
	ErrorCode        int    `json:"errorCode"`
	ErrorDescription string `json:"errorDescription"`
}

// Errors is a middleware that writes the errors of the handlers.
func Errors(c *gin.Context) {
	c.Next()
	for _, e := range c.Errors {
		status := http.StatusBadRequest
		if c.Writer.Status() != http.StatusOK {
			status = c.Writer.Status()
		}
		c.JSON(status, &Error{http.StatusText(status), status, e.Err.Error()})
	}
}

// SuccessOrAbort answers an error.
func SuccessOrAbort(c *gin.Context, code int, err error) (success bool) {
	if err != nil {
		_ = c.AbortWithError(code, err)
	}
	return err == nil
}
