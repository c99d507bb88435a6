-- Each transaction works as one of two roles, which AfterBegin sets: orders_app sees the rows of app.tenant, and
-- orders_admin those of all tenants. Roles belong to the server, so another database of it may have created them.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['orders_app', 'orders_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
        IF NOT pg_has_role(current_user, name, 'MEMBER') THEN
            EXECUTE format('GRANT %I TO current_user', name);
        END IF;
    END LOOP;
END $$;

GRANT SELECT, INSERT, UPDATE ON products, orders, payments, outbox TO orders_app, orders_admin;

-- Inside of the request's transaction River inserts jobs, and marks them as done, and package idempotency keeps keys.
GRANT SELECT, INSERT, UPDATE ON river_job, idempotency_keys TO orders_app, orders_admin;
GRANT USAGE ON SEQUENCE river_job_id_seq TO orders_app, orders_admin;

-- FORCE is for the owner of the tables, whom the policies would not hold otherwise.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['products', 'orders', 'payments', 'outbox'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        -- Without a tenant the setting is NULL, or '' where a transaction before had one: no row has either.
        EXECUTE format('CREATE POLICY tenant ON %I TO orders_app USING (tenant = current_setting(''app.tenant'', true))', name);
        EXECUTE format('CREATE POLICY every ON %I TO orders_admin USING (true)', name);
    END LOOP;
END $$;
