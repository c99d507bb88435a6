-- Amounts are in cents.
CREATE TABLE products (
    tenant  TEXT    NOT NULL,
    id      INTEGER NOT NULL,
    name    TEXT    NOT NULL,
    price   INTEGER NOT NULL CHECK (price > 0),
    stock   INTEGER NOT NULL CHECK (stock >= 0),
    initial INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
);

CREATE TABLE orders (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant     TEXT    NOT NULL,
    product    INTEGER NOT NULL,
    quantity   INTEGER NOT NULL CHECK (quantity > 0),
    total      INTEGER NOT NULL,
    confirmed  INTEGER NOT NULL DEFAULT 0, -- how often
    created_at INTEGER NOT NULL DEFAULT (unixepoch()),
    FOREIGN KEY (tenant, product) REFERENCES products (tenant, id),
    UNIQUE (tenant, id)
);

CREATE TABLE payments (
    order_id INTEGER PRIMARY KEY,
    tenant   TEXT    NOT NULL,
    amount   INTEGER NOT NULL,
    received INTEGER NOT NULL DEFAULT 0,
    state    TEXT    NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'paid')),
    FOREIGN KEY (tenant, order_id) REFERENCES orders (tenant, id)
);

CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant     TEXT    NOT NULL,
    topic      TEXT    NOT NULL,
    payload    TEXT    NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (unixepoch())
);

-- Done ones stay: /api/stats counts all there ever were.
CREATE TABLE jobs (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant   TEXT    NOT NULL,
    order_id INTEGER NOT NULL,
    state    TEXT    NOT NULL DEFAULT 'available' CHECK (state IN ('available', 'completed', 'discarded')),
    attempts INTEGER NOT NULL DEFAULT 0, -- that have failed
    due      INTEGER NOT NULL DEFAULT (unixepoch())
);

CREATE INDEX jobs_available ON jobs (id) WHERE state = 'available';
