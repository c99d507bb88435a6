package server

import (
	"context"
	"errors"
	"strconv"

	"github.com/gin-gonic/gin"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/ports/messages"
)

// API has the handlers.
type API struct {
	DB        *GormDatabase
	Notifier  messages.Notifier
	UserAdded []func(ctx context.Context, userID uint) error
}

// CreateUser creates a user, and tells the plugins.
func (a *API) CreateUser(c *gin.Context) {
	db := a.DB.In(c.Request.Context())
	user := messages.User{}
	if err := c.Bind(&user); err != nil {
		return
	}
	existing, err := db.GetUserByName(user.Name)
	if success := messages.SuccessOrAbort(c, 500, err); !success {
		return
	}
	if existing != nil {
		_ = c.AbortWithError(400, errors.New("username already exists"))
		return
	}
	if success := messages.SuccessOrAbort(c, 500, db.CreateUser(&user)); !success {
		return
	}
	for _, added := range a.UserAdded {
		if success := messages.SuccessOrAbort(c, 500, added(c.Request.Context(), user.ID)); !success {
			return
		}
	}
	c.JSON(200, user)
}

// DeleteUser deletes a user.
func (a *API) DeleteUser(c *gin.Context) {
	id, err := strconv.ParseUint(c.Param("id"), 10, 32)
	if err != nil {
		_ = c.AbortWithError(400, errors.New("invalid id"))
		return
	}
	messages.SuccessOrAbort(c, 500, a.DB.In(c.Request.Context()).DeleteUserByID(uint(id)))
}

// GetApplications returns those of the user.
func (a *API) GetApplications(c *gin.Context) {
	apps, err := a.DB.In(c.Request.Context()).GetApplicationsByUser(c.GetUint("user"))
	if success := messages.SuccessOrAbort(c, 500, err); !success {
		return
	}
	c.JSON(200, apps)
}

// CreateApplication creates one for the user.
func (a *API) CreateApplication(c *gin.Context) {
	export := messages.Export{}
	if err := c.Bind(&export); err != nil {
		return
	}
	app := &messages.Application{UserID: c.GetUint("user"), Name: export.Name, Token: export.Token}
	if success := messages.SuccessOrAbort(c, 500, a.DB.In(c.Request.Context()).CreateApplication(app)); !success {
		return
	}
	c.JSON(200, app)
}

// ImportApplication creates one with its messages.
func (a *API) ImportApplication(c *gin.Context) {
	export := messages.Export{}
	if err := c.Bind(&export); err != nil {
		return
	}
	app, err := a.DB.In(c.Request.Context()).ImportApplication(c.GetUint("user"), &export)
	if success := messages.SuccessOrAbort(c, 500, err); !success {
		return
	}
	c.JSON(200, app)
}

// RenameApplication renames one of the user's.
func (a *API) RenameApplication(c *gin.Context) {
	export := messages.Application{}
	if err := c.Bind(&export); err != nil {
		return
	}
	a.withApplication(c, func(db *GormDatabase, app *messages.Application) {
		if success := messages.SuccessOrAbort(c, 500, db.RenameApplication(app, export.Name)); !success {
			return
		}
		c.JSON(200, app)
	})
}

// DeleteApplication deletes one of the user's.
func (a *API) DeleteApplication(c *gin.Context) {
	a.withApplication(c, func(db *GormDatabase, app *messages.Application) {
		messages.SuccessOrAbort(c, 500, db.DeleteApplicationByID(app.ID))
	})
}

func (a *API) withApplication(c *gin.Context, handle func(db *GormDatabase, app *messages.Application)) {
	db := a.DB.In(c.Request.Context())
	apps, err := db.GetApplicationsByUser(c.GetUint("user"))
	if success := messages.SuccessOrAbort(c, 500, err); !success {
		return
	}
	for _, app := range apps {
		if strconv.FormatUint(uint64(app.ID), 10) == c.Param("id") {
			handle(db, app)
			return
		}
	}
	_ = c.AbortWithError(404, errors.New("app with id "+c.Param("id")+" doesn't exists"))
}

// CreateMessage sends a message of the application to its user.
func (a *API) CreateMessage(c *gin.Context) {
	message := messages.Message{}
	if err := c.Bind(&message); err != nil {
		return
	}
	app := c.MustGet("application").(*messages.Application)
	message.ApplicationID = app.ID
	if success := messages.SuccessOrAbort(c, 500, a.DB.In(c.Request.Context()).CreateMessage(&message)); !success {
		return
	}
	err := sqlreq.AfterCommit(c.Request.Context(), func(context.Context) { a.Notifier.Notify(app.UserID, &message) })
	if success := messages.SuccessOrAbort(c, 500, err); !success {
		return
	}
	c.JSON(200, message)
}

// GetMessages returns those to the user.
func (a *API) GetMessages(c *gin.Context) {
	all, err := a.DB.In(c.Request.Context()).GetMessagesByUser(c.GetUint("user"))
	if success := messages.SuccessOrAbort(c, 500, err); !success {
		return
	}
	c.JSON(200, all)
}
