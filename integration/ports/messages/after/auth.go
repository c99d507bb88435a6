package server

import (
	"errors"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/ports/messages"
)

// Auth knows clients and applications by their tokens.
type Auth struct{ DB *GormDatabase }

// RequireClient requires the token of a client, and notes that it is in use.
func (a *Auth) RequireClient(c *gin.Context) {
	db := a.DB.In(c.Request.Context())
	client, err := db.GetClientByToken(c.GetHeader("X-Gotify-Key"))
	if success := messages.SuccessOrAbort(c, 500, err); !success {
		return
	}
	if client == nil {
		_ = c.AbortWithError(401, errors.New("you need to provide a valid access token"))
		return
	}
	if success := messages.SuccessOrAbort(c, 500, db.UpdateClientTokenLastUsed(client.Token, time.Now())); !success {
		return
	}
	if success := messages.SuccessOrAbort(c, 500, sqlreq.Commit(c.Request.Context())); !success {
		return
	}
	c.Set("user", client.UserID)
}

// RequireApplication requires the token of an application.
func (a *Auth) RequireApplication(c *gin.Context) {
	app, err := a.DB.In(c.Request.Context()).GetApplicationByToken(c.GetHeader("X-Gotify-Key"))
	if success := messages.SuccessOrAbort(c, 500, err); !success {
		return
	}
	if app == nil {
		_ = c.AbortWithError(401, errors.New("you need to provide a valid access token"))
		return
	}
	c.Set("application", app)
}
