-- Amounts are in cents. A row belongs to the tenant of the transaction that writes it.
CREATE TABLE products (
    tenant  text   NOT NULL DEFAULT current_setting('app.tenant'),
    id      bigint NOT NULL,
    name    text   NOT NULL,
    price   bigint NOT NULL CHECK (price > 0),
    stock   bigint NOT NULL CHECK (stock >= 0),
    initial bigint NOT NULL,
    PRIMARY KEY (tenant, id)
);

CREATE TABLE orders (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text        NOT NULL DEFAULT current_setting('app.tenant'),
    product    bigint      NOT NULL,
    quantity   bigint      NOT NULL CHECK (quantity > 0),
    total      bigint      NOT NULL,
    confirmed  bigint      NOT NULL DEFAULT 0, -- how often
    created_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (tenant, product) REFERENCES products (tenant, id),
    UNIQUE (tenant, id)
);

CREATE TABLE payments (
    order_id bigint PRIMARY KEY,
    tenant   text   NOT NULL DEFAULT current_setting('app.tenant'),
    amount   bigint NOT NULL,
    received bigint NOT NULL DEFAULT 0,
    state    text   NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'paid')),
    FOREIGN KEY (tenant, order_id) REFERENCES orders (tenant, id)
);

CREATE TABLE outbox (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text        NOT NULL DEFAULT current_setting('app.tenant'),
    topic      text        NOT NULL,
    payload    jsonb       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
