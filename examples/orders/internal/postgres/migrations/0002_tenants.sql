-- Each transaction works as orders_app, which AfterBegin sets: a role that the policies hold for whoever has logged in. It
-- may do what the service does and no more. Roles belong to the server, so another database of it may have created it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'orders_app') THEN
        CREATE ROLE orders_app NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, 'orders_app', 'MEMBER') THEN
        GRANT orders_app TO current_user;
    END IF;
END $$;

GRANT SELECT ON products, orders, payments TO orders_app;
GRANT UPDATE (stock) ON products TO orders_app;
GRANT INSERT, UPDATE (confirmed) ON orders TO orders_app;
GRANT INSERT, UPDATE (received, state) ON payments TO orders_app;
GRANT SELECT, INSERT ON outbox TO orders_app;

-- Inside of the request's transaction River inserts jobs, and marks them as done, and package idempotency keeps keys.
GRANT SELECT, INSERT, UPDATE ON river_job, idempotency_keys TO orders_app;
GRANT USAGE ON SEQUENCE river_job_id_seq TO orders_app;

-- A transaction sees and writes the rows of app.tenant, or sees those of all tenants if app.every is on. A setting that
-- was never made is NULL, and one that a transaction before had made is '': neither is a tenant. FORCE is for the owner of
-- the tables, whom the policies would not hold otherwise.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['products', 'orders', 'payments', 'outbox'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant = nullif(current_setting(''app.tenant'', true), ''''))', name);
        EXECUTE format('CREATE POLICY every ON %I FOR SELECT USING (current_setting(''app.every'', true) = ''on'')', name);
    END LOOP;
END $$;
