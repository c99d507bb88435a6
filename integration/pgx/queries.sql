-- name: AddNote :one
INSERT INTO sqlc_notes (text, tags) VALUES ($1, $2) RETURNING *;

-- name: Notes :many
SELECT * FROM sqlc_notes ORDER BY id;

-- name: Rename :execrows
UPDATE sqlc_notes SET text = $2 WHERE id = $1;

-- name: DeleteNote :exec
DELETE FROM sqlc_notes WHERE id = $1;

-- name: CopyNotes :copyfrom
INSERT INTO sqlc_notes (text, tags) VALUES ($1, $2);

-- name: AddNotes :batchone
INSERT INTO sqlc_notes (text, tags) VALUES ($1, $2) RETURNING id;

-- name: RenameNotes :batchexec
UPDATE sqlc_notes SET text = $2 WHERE id = $1;

-- name: NotesLike :batchmany
SELECT * FROM sqlc_notes WHERE text LIKE $1 ORDER BY id;
