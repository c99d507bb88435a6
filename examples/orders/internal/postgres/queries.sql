-- There is no WHERE tenant = … here: the policies of the tables see to it, in every query, also in one that forgets it.

-- name: Products :many
SELECT id, name, price, stock FROM products ORDER BY id;

-- name: TakeStock :one
UPDATE products SET stock = stock - sqlc.arg(quantity) WHERE id = $1 AND stock >= sqlc.arg(quantity) RETURNING price;

-- name: HasProduct :one
SELECT EXISTS (SELECT FROM products WHERE id = $1);

-- name: AddOrder :one
INSERT INTO orders (product, quantity, total) VALUES ($1, $2, $3) RETURNING id;

-- name: Order :one
SELECT sqlc.embed(orders), sqlc.embed(payments), products.name
FROM orders JOIN payments ON payments.order_id = orders.id
JOIN products ON products.tenant = orders.tenant AND products.id = orders.product
WHERE orders.id = $1;

-- name: AddPayment :exec
INSERT INTO payments (order_id, amount) VALUES ($1, $2);

-- name: Receive :execrows
UPDATE payments SET received = received + sqlc.arg(amount),
    state = CASE WHEN received + sqlc.arg(amount) >= payments.amount THEN 'paid' ELSE 'pending' END
WHERE order_id = $1;

-- name: Confirm :execrows
UPDATE orders SET confirmed = confirmed + 1 WHERE id = $1;

-- name: AddEvent :exec
INSERT INTO outbox (topic, payload) VALUES ($1, $2);

-- name: Seed :exec
INSERT INTO products (id, name, price, stock, initial) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant, id) DO NOTHING;

-- name: Stats :one
SELECT (SELECT count(*) FROM orders) AS orders,
    (SELECT count(*) FROM payments) AS payments,
    (SELECT count(*) FROM river_job WHERE kind = 'confirm') AS jobs,
    (SELECT count(*) FROM outbox) AS outbox,
    (SELECT coalesce(sum(quantity), 0) FROM orders)::bigint AS sold,
    coalesce(sum(stock), 0)::bigint AS stock,
    coalesce(sum(initial), 0)::bigint AS initial
FROM products;

-- name: Stock :many
SELECT * FROM products ORDER BY tenant, id;

-- name: LatestOrders :many
SELECT sqlc.embed(orders), sqlc.embed(payments), products.name
FROM orders JOIN payments ON payments.order_id = orders.id
JOIN products ON products.tenant = orders.tenant AND products.id = orders.product
ORDER BY orders.id DESC LIMIT $1;

-- name: LatestJobs :many
SELECT id, state, args FROM river_job WHERE kind = 'confirm' ORDER BY id DESC LIMIT $1;
