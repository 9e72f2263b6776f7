-- A temporary increase of a budget: `budget_extra` tokens more, until `budget_extra_until`.
ALTER TABLE gateway.tenants ADD COLUMN budget_extra bigint CHECK (budget_extra > 0),
    ADD COLUMN budget_extra_until timestamptz,
    ADD CONSTRAINT tenants_extra CHECK ((budget_extra IS NULL) = (budget_extra_until IS NULL));
ALTER TABLE gateway.api_keys ADD COLUMN budget_extra bigint CHECK (budget_extra > 0),
    ADD COLUMN budget_extra_until timestamptz,
    ADD CONSTRAINT api_keys_extra CHECK ((budget_extra IS NULL) = (budget_extra_until IS NULL));

-- What a budget is at this instant; null is unlimited whatever is added.
CREATE FUNCTION gateway.effective_budget(budget bigint, extra bigint, until timestamptz)
RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN until > now() THEN budget + least(extra, 9223372036854775807 - budget)
        ELSE budget END
$$;

-- The first day of the period that a day is in, and the first day after it.
CREATE FUNCTION gateway.period_first(period text, day date)
RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE period WHEN 'day' THEN day
        WHEN 'month' THEN date_trunc('month', day::timestamp)::date ELSE '-infinity' END
$$;
CREATE FUNCTION gateway.period_until(period text, day date)
RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE period WHEN 'day' THEN day + 1
        WHEN 'month' THEN (date_trunc('month', day::timestamp) + interval '1 month')::date
        ELSE 'infinity' END
$$;

-- Budgets of which 80 or 100 per cent are spent, once for each period and limit. `period_start`
-- is '-infinity' for a total budget. At 100 per cent calls are being refused, even though a rest
-- that is too small for them may be left.
CREATE TABLE gateway.budget_notices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    scope text NOT NULL, -- as in gateway.spend
    tenant_id text NOT NULL,
    key_id text,
    period text NOT NULL,
    period_start date NOT NULL,
    threshold integer NOT NULL, -- per cent
    budget bigint NOT NULL, -- tokens, with an increase that was in force
    spent bigint NOT NULL,
    told boolean NOT NULL DEFAULT false, -- to the log and the metrics of one process
    UNIQUE (scope, period, period_start, threshold, budget)
);
CREATE INDEX budget_notices_at ON gateway.budget_notices (at);
CREATE INDEX budget_notices_tenant ON gateway.budget_notices (tenant_id, id);
-- For `Notices.current` alone, which asks for `id > 0` and orders by `-id`: to find one notice, a
-- plan made on an empty table could otherwise choose this index, and read a period each time; and
-- to list a period it could choose the primary key, and read all others.
CREATE INDEX budget_notices_running
    ON gateway.budget_notices (period_start, threshold, (-id)) WHERE id > 0;
CREATE INDEX budget_notices_untold ON gateway.budget_notices (id) WHERE NOT told;

-- Where notices are sent; secrets sign them.
CREATE TABLE gateway.webhooks (
    id text PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
    url text NOT NULL,
    secret text NOT NULL,
    tenant_id text REFERENCES gateway.tenants ON DELETE CASCADE, -- null: of every tenant
    disabled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhooks_tenant ON gateway.webhooks (tenant_id);

-- One row for each notice and webhook; without a notice it is a test.
CREATE TABLE gateway.deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- What every attempt is known by to the receiver, who may see one twice.
    message_id text NOT NULL DEFAULT 'msg_' || replace(gen_random_uuid()::text, '-', ''),
    webhook_id text NOT NULL REFERENCES gateway.webhooks ON DELETE CASCADE,
    notice_id bigint REFERENCES gateway.budget_notices ON DELETE CASCADE,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'given_up')),
    attempts integer NOT NULL DEFAULT 0, -- begun
    next_at timestamptz NOT NULL DEFAULT now(), -- while one is under way, the end of its lease
    status_code integer, -- of the last answer
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    UNIQUE (notice_id, webhook_id)
);
CREATE INDEX deliveries_webhook ON gateway.deliveries (webhook_id, id);
CREATE INDEX deliveries_waiting ON gateway.deliveries (webhook_id, next_at)
    WHERE state = 'waiting';
CREATE INDEX deliveries_created ON gateway.deliveries (created_at);

-- Write the notices that are due for the budgets of these scopes on these days (two arrays of one
-- length), and what webhooks are to be sent. `refused`: a call was turned away for want of budget,
-- so that from 80 per cent on the budget counts as spent.
-- Rows are taken in order, so that two writers who share some cannot deadlock. The settings: the
-- plan is made once, which costs more than to run it, maybe while the tables are empty, and has to
-- be right for when they are not.
CREATE FUNCTION gateway.notice_budgets(scopes text[], days date[], refused boolean)
RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    due record;
    notice bigint;
BEGIN
    FOR due IN
        SELECT b.scope, b.tenant_id, b.key_id, b.period, b.budget, p.first, s.spent, h.threshold
        FROM (
            SELECT a.scope, t.id AS tenant_id, NULL::text AS key_id, t.budget_period AS period,
                a.day, gateway.effective_budget(t.budget, t.budget_extra, t.budget_extra_until)
                    AS budget
            FROM unnest(scopes, days) AS a (scope, day)
            JOIN gateway.tenants t ON t.id = substr(a.scope, 3) AND a.scope LIKE 't:%'
            UNION ALL
            SELECT a.scope, k.tenant_id, k.id, k.budget_period,
                a.day, gateway.effective_budget(k.budget, k.budget_extra, k.budget_extra_until)
            FROM unnest(scopes, days) AS a (scope, day)
            JOIN gateway.api_keys k ON k.id = substr(a.scope, 3) AND a.scope LIKE 'k:%'
        ) b CROSS JOIN LATERAL (
            SELECT gateway.period_first(b.period, b.day) AS first,
                gateway.period_until(b.period, b.day) AS until
        ) p CROSS JOIN LATERAL (
            SELECT coalesce(sum(charged), 0) AS spent FROM gateway.spend
            WHERE scope = b.scope AND period_start >= p.first AND period_start < p.until
        ) s CROSS JOIN (VALUES (80), (100)) AS h (threshold)
        WHERE b.budget > 0 AND CASE
            WHEN s.spent * 100 >= b.budget::numeric * CASE WHEN refused THEN 80 ELSE h.threshold END
            -- Not a join, so that it is asked last, and by the whole of the unique index.
            THEN (SELECT count(*) FROM gateway.budget_notices n
                WHERE n.scope = b.scope AND n.period = b.period AND n.period_start = p.first
                    AND n.threshold = h.threshold AND n.budget = b.budget) = 0 END
        ORDER BY b.scope, p.first, h.threshold
    LOOP
        INSERT INTO gateway.budget_notices AS n
            (scope, tenant_id, key_id, period, period_start, threshold, budget, spent)
        VALUES (due.scope, due.tenant_id, due.key_id, due.period, due.first, due.threshold,
            due.budget, least(due.spent, 9223372036854775807))
        ON CONFLICT DO NOTHING RETURNING n.id INTO notice;
        CONTINUE WHEN notice IS NULL; -- another transaction was first
        -- A webhook that is being deleted is passed over: nobody waits for it.
        INSERT INTO gateway.deliveries (webhook_id, notice_id)
        SELECT w.id, notice FROM gateway.webhooks w
        WHERE w.disabled_at IS NULL AND (w.tenant_id IS NULL OR w.tenant_id = due.tenant_id)
        FOR KEY SHARE SKIP LOCKED;
        PERFORM pg_notify('gateway_changes', 'notice:' || notice);
    END LOOP;
END $$;

-- Runs after all parts of the statement that wrote the rows: their sums are in gateway.spend. Most
-- budgets are not near their end, and end here.
CREATE FUNCTION gateway.notice_spending() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    scopes text[];
    days date[];
BEGIN
    WITH whose AS MATERIALIZED (
        SELECT DISTINCT tenant_id, key_id, (started_at AT TIME ZONE 'UTC')::date AS day FROM added
    )
    SELECT array_agg(scope), array_agg(day) INTO scopes, days FROM (
        SELECT 't:' || t.id AS scope, day, t.budget_period AS period,
            gateway.effective_budget(t.budget, t.budget_extra, t.budget_extra_until) AS budget
        FROM (SELECT DISTINCT tenant_id, day FROM whose) a
        JOIN gateway.tenants t ON t.id = a.tenant_id AND t.budget IS NOT NULL
        UNION ALL
        SELECT 'k:' || k.id, day, k.budget_period,
            gateway.effective_budget(k.budget, k.budget_extra, k.budget_extra_until)
        FROM whose JOIN gateway.api_keys k ON k.id = key_id AND k.budget IS NOT NULL
    ) b WHERE (
        SELECT sum(charged) FROM gateway.spend WHERE scope = b.scope
            AND period_start >= gateway.period_first(b.period, b.day)
            AND period_start < gateway.period_until(b.period, b.day)
    ) * 100 >= b.budget::numeric * 80;
    IF scopes IS NOT NULL THEN
        PERFORM gateway.notice_budgets(scopes, days, false);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER notice_spending AFTER INSERT ON gateway.ledger
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION gateway.notice_spending();

CREATE FUNCTION gateway.notice_refusals() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    scopes text[];
    days date[];
BEGIN
    SELECT array_agg(scope), array_agg(day) INTO scopes, days FROM (
        SELECT DISTINCT scope, (last_at AT TIME ZONE 'UTC')::date AS day
        FROM added, LATERAL (VALUES ('t:' || tenant_id), ('k:' || key_id)) AS s (scope)
        WHERE code = 'insufficient_quota' AND scope IS NOT NULL
    ) a;
    IF scopes IS NOT NULL THEN
        PERFORM gateway.notice_budgets(scopes, days, true);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER notice_refusals AFTER INSERT ON gateway.audit_log
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION gateway.notice_refusals();

-- A batch that rests for want of budget is refused as a call is.
CREATE FUNCTION gateway.notice_pause() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM gateway.notice_budgets(ARRAY['t:' || NEW.tenant_id, 'k:' || NEW.key_id],
        array_fill((now() AT TIME ZONE 'UTC')::date, ARRAY[2]), true);
    RETURN NULL;
END $$;
CREATE TRIGGER notice_pause AFTER UPDATE ON gateway.batches
    FOR EACH ROW WHEN (NEW.paused = 'insufficient_quota' AND OLD.paused IS DISTINCT FROM NEW.paused)
    EXECUTE FUNCTION gateway.notice_pause();

-- Revocations say when they were made as well, for whoever measures how long they took. Workers
-- of earlier releases know the first word alone.
CREATE OR REPLACE FUNCTION gateway.announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CASE TG_TABLE_NAME
        WHEN 'revocations' THEN
            PERFORM pg_notify('gateway_changes', 'revoked:' || NEW.key_id);
            PERFORM pg_notify('gateway_changes', 'stamp:' || NEW.key_id || ':'
                || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
        WHEN 'api_keys' THEN
            PERFORM pg_notify('gateway_changes', 'key:' || coalesce(NEW.id, OLD.id));
        WHEN 'tenants' THEN
            PERFORM pg_notify('gateway_changes', 'tenant:' || coalesce(NEW.id, OLD.id));
        ELSE PERFORM pg_notify('gateway_changes', 'models');
    END CASE;
    RETURN NULL;
END $$;
