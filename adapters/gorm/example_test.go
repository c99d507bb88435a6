package sqlreqgorm_test

import (
	"context"

	"gorm.io/gorm"

	"github.com/sqlreq/sqlreq"
	sqlreqgorm "github.com/sqlreq/sqlreq/adapters/gorm"
)

type row struct{ Text string }

// The lines of sqlreq's README.md: the pool below gorm is that of the binding.
func ExampleDB() {
	_ = func(gdb *gorm.DB) (*sqlreq.Registry, error) {
		pool, err := gdb.DB()
		if err != nil {
			return nil, err
		}
		return sqlreq.New(sqlreq.Binding{DB: pool})
	}
	_ = func(ctx context.Context, gdb *gorm.DB, note row) error {
		return sqlreqgorm.DB(ctx, gdb, sqlreq.DefaultKey).Create(&note).Error
	}
}
