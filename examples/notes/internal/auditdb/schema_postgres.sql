-- schema.sql in the words of PostgreSQL
CREATE TABLE IF NOT EXISTS audit_log (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    action  TEXT NOT NULL,
    detail  TEXT NOT NULL,
    outcome TEXT NOT NULL DEFAULT 'unknown'
);
