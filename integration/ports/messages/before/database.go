// Package server is the program as Gotify has it: each statement is a transaction, but for what is in one of gorm's.
package server

import (
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/sqlreq/sqlreq/integration/ports/messages"
)

// GormDatabase is the database.
type GormDatabase struct{ DB *gorm.DB }

// GetClientByToken returns nil if there is none.
func (d *GormDatabase) GetClientByToken(token string) (*messages.Client, error) {
	client := new(messages.Client)
	err := d.DB.Where("token = ?", token).Limit(1).Find(client).Error
	if client.Token == token {
		return client, err
	}
	return nil, err
}

// UpdateClientTokenLastUsed notes that a client is in use.
func (d *GormDatabase) UpdateClientTokenLastUsed(token string, t time.Time) error {
	return d.DB.Model(&messages.Client{}).Where("token = ?", token).Update("last_used", t).Error
}

// GetUserByName returns nil if there is none.
func (d *GormDatabase) GetUserByName(name string) (*messages.User, error) {
	user := new(messages.User)
	err := d.DB.Where("name = ?", name).Limit(1).Find(user).Error
	if user.Name == name {
		return user, err
	}
	return nil, err
}

// CreateUser creates a user.
func (d *GormDatabase) CreateUser(user *messages.User) error {
	return d.DB.Create(user).Error
}

// DeleteUserByID deletes a user with all that is the user's.
func (d *GormDatabase) DeleteUserByID(id uint) error {
	apps, err := d.GetApplicationsByUser(id)
	if err != nil {
		return err
	}
	for _, app := range apps {
		if err := d.DeleteApplicationByID(app.ID); err != nil {
			return err
		}
	}
	return d.DB.Where("id = ?", id).Delete(&messages.User{}).Error
}

// CreatePluginConf creates the configuration of a plugin for a user.
func (d *GormDatabase) CreatePluginConf(userID uint) error {
	return d.DB.Create(&messages.PluginConf{UserID: userID}).Error
}

// GetApplicationByToken returns nil if there is none.
func (d *GormDatabase) GetApplicationByToken(token string) (*messages.Application, error) {
	app := new(messages.Application)
	err := d.DB.Where("token = ?", token).Limit(1).Find(app).Error
	if app.Token == token {
		return app, err
	}
	return nil, err
}

// GetApplicationsByUser returns those of a user.
func (d *GormDatabase) GetApplicationsByUser(userID uint) ([]*messages.Application, error) {
	apps := []*messages.Application{}
	err := d.DB.Where("user_id = ?", userID).Order("sort_key, id ASC").Find(&apps).Error
	return apps, err
}

// CreateApplication creates an application behind the others of the user.
func (d *GormDatabase) CreateApplication(app *messages.Application) error {
	return d.DB.Transaction(func(tx *gorm.DB) error {
		last := 0
		err := tx.Model(&messages.Application{}).Select("sort_key").Where("user_id = ?", app.UserID).
			Order("sort_key DESC").Limit(1).Find(&last).Error
		if err != nil {
			return err
		}
		app.SortKey = last + 1
		return tx.Create(app).Error
	})
}

// ImportApplication creates an application with its messages.
func (d *GormDatabase) ImportApplication(userID uint, export *messages.Export) (app *messages.Application, err error) {
	tx := d.DB.Begin()
	defer func() {
		if err == nil {
			tx.Commit()
		} else {
			tx.Rollback()
		}
	}()

	app = &messages.Application{UserID: userID, Name: export.Name, Token: export.Token}
	if err = tx.Create(app).Error; err != nil {
		return nil, err
	}
	for _, text := range export.Messages {
		if err = tx.Create(&messages.Message{ApplicationID: app.ID, Message: strings.ToUpper(text[:1]) + text[1:]}).Error; err != nil {
			return nil, err
		}
	}
	return app, nil
}

// RenameApplication gives an application another name, and tells the user.
func (d *GormDatabase) RenameApplication(app *messages.Application, name string) error {
	tx := d.DB.Begin()
	if err := tx.Model(app).Update("name", strings.ToUpper(name[:1])+name[1:]).Error; err != nil {
		tx.Rollback()
		return err
	}
	if err := tx.Create(&messages.Message{ApplicationID: app.ID, Message: "My name is " + app.Name}).Error; err != nil {
		tx.Rollback()
		return err
	}
	return tx.Commit().Error
}

// DeleteApplicationByID deletes an application with its messages.
func (d *GormDatabase) DeleteApplicationByID(id uint) error {
	if err := d.DB.Where("application_id = ?", id).Delete(&messages.Message{}).Error; err != nil {
		return err
	}
	return d.DB.Where("id = ?", id).Delete(&messages.Application{}).Error
}

// CreateMessage creates a message.
func (d *GormDatabase) CreateMessage(message *messages.Message) error {
	return d.DB.Create(message).Error
}

// GetMessagesByUser returns those to a user.
func (d *GormDatabase) GetMessagesByUser(userID uint) ([]*messages.Message, error) {
	all := []*messages.Message{}
	err := d.DB.Joins("JOIN applications ON applications.user_id = ?", userID).
		Where("messages.application_id = applications.id").Order("messages.id desc").Find(&all).Error
	return all, err
}
