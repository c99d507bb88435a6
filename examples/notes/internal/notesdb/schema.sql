CREATE TABLE IF NOT EXISTS notes (
    -- AUTOINCREMENT: an id is never used again, so that a browser can ask for "what came after 17"
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    title      TEXT NOT NULL,
    body       TEXT NOT NULL,
    created_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE IF NOT EXISTS tags (
    note_id INTEGER NOT NULL REFERENCES notes (id) ON DELETE CASCADE,
    tag     TEXT NOT NULL CHECK (tag <> '' AND length(tag) <= 20 AND tag NOT GLOB '*[^a-z0-9-]*'),
    PRIMARY KEY (note_id, tag)
) WITHOUT ROWID;

CREATE VIEW IF NOT EXISTS tagged_notes AS
SELECT id, title, body, created_at,
       CAST(COALESCE((SELECT group_concat(tag, ' ') FROM tags WHERE note_id = notes.id), '') AS TEXT) AS tags
FROM notes;

CREATE TABLE IF NOT EXISTS counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
);
INSERT OR IGNORE INTO counters (name, value) VALUES ('clicks', 0);

CREATE TABLE IF NOT EXISTS imports (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    file       TEXT NOT NULL,
    added      INTEGER NOT NULL,
    created_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE IF NOT EXISTS bad_lines (
    import_id INTEGER NOT NULL REFERENCES imports (id) ON DELETE CASCADE,
    line      INTEGER NOT NULL,
    problem   TEXT NOT NULL,
    PRIMARY KEY (import_id, line)
) WITHOUT ROWID;
