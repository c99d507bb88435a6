-- schema.sql in the words of PostgreSQL
CREATE TABLE IF NOT EXISTS notes (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title      TEXT NOT NULL,
    body       TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS tags (
    note_id BIGINT NOT NULL REFERENCES notes (id) ON DELETE CASCADE,
    tag     TEXT NOT NULL CHECK (tag ~ '^[a-z0-9-]{1,20}$'),
    PRIMARY KEY (note_id, tag)
);

CREATE OR REPLACE VIEW tagged_notes AS
SELECT id, title, body, created_at,
       COALESCE((SELECT string_agg(tag, ' ' ORDER BY tag) FROM tags WHERE note_id = notes.id), '') AS tags
FROM notes;

CREATE TABLE IF NOT EXISTS counters (
    name  TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('clicks', 0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS imports (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    file       TEXT NOT NULL,
    added      BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS bad_lines (
    import_id BIGINT NOT NULL REFERENCES imports (id) ON DELETE CASCADE,
    line      BIGINT NOT NULL,
    problem   TEXT NOT NULL,
    PRIMARY KEY (import_id, line)
);
