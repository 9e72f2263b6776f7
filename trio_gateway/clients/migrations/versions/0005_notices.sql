-- A temporary increase of a budget: `budget_extra` tokens more, until `budget_extra_until`.
ALTER TABLE gateway.tenants ADD COLUMN budget_extra bigint CHECK (budget_extra > 0),
    ADD COLUMN budget_extra_until timestamptz,
    ADD CONSTRAINT tenants_extra CHECK ((budget_extra IS NULL) = (budget_extra_until IS NULL));
ALTER TABLE gateway.api_keys ADD COLUMN budget_extra bigint CHECK (budget_extra > 0),
    ADD COLUMN budget_extra_until timestamptz,
    ADD CONSTRAINT api_keys_extra CHECK ((budget_extra IS NULL) = (budget_extra_until IS NULL));

-- Budgets of which 80 or 100 per cent are spent, once for each period and limit. `period_start`
-- is '-infinity' for a total budget.
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
    UNIQUE (scope, period, period_start, threshold, budget)
);
CREATE INDEX budget_notices_at ON gateway.budget_notices (at);

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

-- One row for each notice and webhook.
CREATE TABLE gateway.deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    webhook_id text NOT NULL REFERENCES gateway.webhooks ON DELETE CASCADE,
    notice_id bigint NOT NULL REFERENCES gateway.budget_notices ON DELETE CASCADE,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'given_up')),
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now(),
    status_code integer,
    error text,
    ended_at timestamptz,
    UNIQUE (webhook_id, notice_id)
);
CREATE INDEX deliveries_waiting ON gateway.deliveries (next_at) WHERE state = 'waiting';

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
