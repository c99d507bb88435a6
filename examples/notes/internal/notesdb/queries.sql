-- name: CreateNote :one
INSERT INTO notes (title, body) VALUES (?, ?) RETURNING id;

-- name: AddTag :exec
INSERT INTO tags (note_id, tag) VALUES (?, ?);

-- name: GetNote :one
SELECT * FROM tagged_notes WHERE id = ?;

-- name: ListNotes :many
SELECT * FROM tagged_notes ORDER BY id DESC LIMIT ? OFFSET ?;

-- name: ListNotesAfter :many
SELECT * FROM tagged_notes WHERE id > ? ORDER BY id LIMIT ?;

-- name: CountNotes :one
SELECT count(*) FROM notes;

-- name: DeleteNote :execrows
DELETE FROM notes WHERE id = ?;

-- name: GetCounter :one
SELECT value FROM counters WHERE name = ?;

-- name: SetCounter :exec
UPDATE counters SET value = ? WHERE name = ?;

-- name: CreateImport :one
INSERT INTO imports (file, added) VALUES (?, ?) RETURNING id;

-- name: AddBadLine :exec
INSERT INTO bad_lines (import_id, line, problem) VALUES (?, ?, ?);

-- name: GetImport :one
SELECT * FROM imports WHERE id = ?;

-- name: ListBadLines :many
SELECT * FROM bad_lines WHERE import_id = ? ORDER BY line;
