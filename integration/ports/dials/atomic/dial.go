package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/sqlreq/sqlreq"
	"github.com/sqlreq/sqlreq/integration/ports/dials"
)

// DialService is a store of dials.
type DialService struct{ db *DB }

// FindDialByID returns a dial that the user is a member of.
func (s *DialService) FindDialByID(ctx context.Context, id int) (*dials.Dial, error) {
	return findDialByID(ctx, s.db.tx(), id)
}

// FindDials returns the dials that the user is a member of.
func (s *DialService) FindDials(ctx context.Context) ([]*dials.Dial, error) {
	return findDials(ctx, s.db.tx(), 0)
}

// CreateDial creates a dial of the user, who becomes its first member.
func (s *DialService) CreateDial(ctx context.Context, dial *dials.Dial) error {
	return s.db.atomic(ctx, func(ctx context.Context, tx *Tx) error {
		return createDial(ctx, tx, dial)
	})
}

// DeleteDial deletes a dial of the user.
func (s *DialService) DeleteDial(ctx context.Context, id int) error {
	return s.db.atomic(ctx, func(ctx context.Context, tx *Tx) error {
		return deleteDial(ctx, tx, id)
	})
}

// SetDialMembershipValue sets what the user's membership counts for.
func (s *DialService) SetDialMembershipValue(ctx context.Context, dialID, value int) error {
	return s.db.atomic(ctx, func(ctx context.Context, tx *Tx) error {
		return setMembershipValue(ctx, tx, dialID, value)
	})
}

func findDialByID(ctx context.Context, tx *Tx, id int) (*dials.Dial, error) {
	found, err := findDials(ctx, tx, id)
	if err != nil {
		return nil, err
	} else if len(found) == 0 {
		return nil, dials.Errorf(dials.ENOTFOUND, "Dial not found.")
	}
	return found[0], nil
}

func findDials(ctx context.Context, tx *Tx, id int) ([]*dials.Dial, error) {
	rows, err := tx.QueryContext(ctx, `SELECT id, user_id, name, value FROM dials WHERE (id = ?1 OR ?1 = 0) AND
		id IN (SELECT dial_id FROM dial_memberships WHERE user_id = ?2) ORDER BY id`, id, dials.UserIDFromContext(ctx))
	if err != nil {
		return nil, err
	}
	defer rows.Close()

	found := make([]*dials.Dial, 0)
	for rows.Next() {
		var dial dials.Dial
		if err := rows.Scan(&dial.ID, &dial.UserID, &dial.Name, &dial.Value); err != nil {
			return nil, err
		}
		found = append(found, &dial)
	}
	return found, rows.Err()
}

func createDial(ctx context.Context, tx *Tx, dial *dials.Dial) error {
	dial.UserID, dial.Value = dials.UserIDFromContext(ctx), 0
	if dial.Name == "" {
		return dials.Errorf(dials.EINVALID, "Dial name required.")
	}
	err := tx.QueryRowContext(ctx, `INSERT INTO dials (user_id, name) VALUES (?, ?) RETURNING id`, dial.UserID, dial.Name).Scan(&dial.ID)
	if err != nil {
		return err
	}
	if err := insertDialValue(ctx, tx, dial.ID, 0); err != nil {
		return err
	}
	return createMembership(ctx, tx, &dials.Membership{DialID: dial.ID, UserID: dial.UserID})
}

func deleteDial(ctx context.Context, tx *Tx, id int) error {
	if dial, err := findDialByID(ctx, tx, id); err != nil {
		return err
	} else if dial.UserID != dials.UserIDFromContext(ctx) {
		return dials.Errorf(dials.EUNAUTHORIZED, "Only the owner can delete a dial.")
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM dials WHERE id = ?`, id)
	return err
}

func insertDialValue(ctx context.Context, tx *Tx, id, value int) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO dial_values (dial_id, value) VALUES (?, ?)`, id, value)
	return err
}

// refreshDialValue computes the value of a dial anew.
func refreshDialValue(ctx context.Context, tx *Tx, id int) error {
	var before, after int
	err := tx.QueryRowContext(ctx, `SELECT value, (SELECT CAST(ROUND(IFNULL(AVG(value), 0)) AS INTEGER)
		FROM dial_memberships WHERE dial_id = dials.id) FROM dials WHERE id = ?`, id).Scan(&before, &after)
	if errors.Is(err, sql.ErrNoRows) || err == nil && before == after {
		return nil
	} else if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE dials SET value = ? WHERE id = ?`, after, id); err != nil {
		return err
	}
	if err := insertDialValue(ctx, tx, id, after); err != nil {
		return err
	}
	return publishDialEvent(ctx, tx, id, dials.Event{Type: "dial:value_changed", DialID: id, Value: after})
}

// publishDialEvent sends an event to all members of the dial.
func publishDialEvent(ctx context.Context, tx *Tx, id int, event dials.Event) error {
	members, err := findMemberships(ctx, tx, id)
	if err != nil {
		return err
	}
	return sqlreq.AfterCommit(ctx, func(context.Context) {
		for _, member := range members {
			tx.db.EventService.PublishEvent(member.UserID, event)
		}
	})
}
