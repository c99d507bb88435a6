package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/sqlreq/sqlreq/integration/ports/dials"
)

// UserService is a store of users.
type UserService struct{ db *DB }

// FindUserByKey returns the user with an API key.
func (s *UserService) FindUserByKey(ctx context.Context, key string) (*dials.User, error) {
	user := new(dials.User)
	err := s.db.tx().QueryRowContext(ctx, `SELECT id, name FROM users WHERE api_key = ?`, key).Scan(&user.ID, &user.Name)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, dials.Errorf(dials.EUNAUTHORIZED, "Invalid API key.")
	}
	return user, err
}

// MembershipService is a store of memberships.
type MembershipService struct{ db *DB }

// FindMemberships returns those of a dial.
func (s *MembershipService) FindMemberships(ctx context.Context, dialID int) ([]*dials.Membership, error) {
	return findMemberships(ctx, s.db.tx(), dialID)
}

// CreateMembership makes the user a member.
func (s *MembershipService) CreateMembership(ctx context.Context, membership *dials.Membership) error {
	membership.UserID = dials.UserIDFromContext(ctx)
	return s.db.atomic(ctx, func(ctx context.Context, tx *Tx) error {
		return createMembership(ctx, tx, membership)
	})
}

// DeleteMembership ends a membership of the user.
func (s *MembershipService) DeleteMembership(ctx context.Context, id int) error {
	return s.db.atomic(ctx, func(ctx context.Context, tx *Tx) error {
		return deleteMembership(ctx, tx, id)
	})
}

func findMemberships(ctx context.Context, tx *Tx, dialID int) ([]*dials.Membership, error) {
	rows, err := tx.QueryContext(ctx, `SELECT id, dial_id, user_id, value FROM dial_memberships WHERE dial_id = ? ORDER BY id`, dialID)
	if err != nil {
		return nil, err
	}
	defer rows.Close()

	found := make([]*dials.Membership, 0)
	for rows.Next() {
		var m dials.Membership
		if err := rows.Scan(&m.ID, &m.DialID, &m.UserID, &m.Value); err != nil {
			return nil, err
		}
		found = append(found, &m)
	}
	return found, rows.Err()
}

func createMembership(ctx context.Context, tx *Tx, m *dials.Membership) error {
	err := tx.QueryRowContext(ctx, `INSERT INTO dial_memberships (dial_id, user_id, value) VALUES (?, ?, ?) RETURNING id`,
		m.DialID, m.UserID, m.Value).Scan(&m.ID)
	switch {
	case err == nil:
		return refreshDialValue(ctx, tx, m.DialID)
	case strings.Contains(err.Error(), "UNIQUE constraint failed"):
		return dials.Errorf(dials.ECONFLICT, "Dial membership already exists.")
	}
	return err
}

// setMembershipValue looks at the value when it has been stored, as a constraint would.
func setMembershipValue(ctx context.Context, tx *Tx, dialID, value int) error {
	result, err := tx.ExecContext(ctx, `UPDATE dial_memberships SET value = ? WHERE dial_id = ? AND user_id = ?`,
		value, dialID, dials.UserIDFromContext(ctx))
	if err != nil {
		return err
	} else if n, err := result.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return dials.Errorf(dials.ENOTFOUND, "User is not a member of this dial.")
	} else if value < 0 || value > 100 {
		return dials.Errorf(dials.EINVALID, "Invalid WTF level.")
	}
	return refreshDialValue(ctx, tx, dialID)
}

func deleteMembership(ctx context.Context, tx *Tx, id int) error {
	var dialID, userID, owner int
	err := tx.QueryRowContext(ctx, `SELECT m.dial_id, m.user_id, d.user_id FROM dial_memberships m JOIN dials d ON d.id = m.dial_id
		WHERE m.id = ?`, id).Scan(&dialID, &userID, &owner)
	if errors.Is(err, sql.ErrNoRows) {
		return dials.Errorf(dials.ENOTFOUND, "Dial membership not found.")
	} else if err != nil {
		return err
	} else if userID == owner {
		return dials.Errorf(dials.ECONFLICT, "Dial owner may not delete their own membership.")
	} else if userID != dials.UserIDFromContext(ctx) {
		return dials.Errorf(dials.EUNAUTHORIZED, "You do not have permission to delete the dial membership.")
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM dial_memberships WHERE id = ?`, id); err != nil {
		return err
	}
	return refreshDialValue(ctx, tx, dialID)
}
