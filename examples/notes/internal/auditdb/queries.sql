-- name: Record :one
INSERT INTO audit_log (action, detail) VALUES (?, ?) RETURNING id;

-- name: SetOutcome :exec
UPDATE audit_log SET outcome = ? WHERE id = ?;

-- name: Latest :many
SELECT * FROM audit_log ORDER BY id DESC LIMIT ?;
