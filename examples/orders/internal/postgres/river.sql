-- The columns of River's table that the queries use, for sqlc only: River's own migrations create it.
CREATE TABLE river_job (
    id    bigint PRIMARY KEY,
    state text   NOT NULL,
    kind  text   NOT NULL,
    args  jsonb  NOT NULL
);
