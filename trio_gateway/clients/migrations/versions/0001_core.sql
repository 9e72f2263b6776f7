CREATE SCHEMA IF NOT EXISTS gateway;

-- One row: what the installation as a whole knows. `key_secret` signs the check of every key.
CREATE TABLE gateway.installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    key_secret bytea NOT NULL CHECK (length(key_secret) >= 32),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE gateway.tenants (
    id text PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
    all_models boolean NOT NULL DEFAULT false,
    models text[] NOT NULL DEFAULT '{}',
    allow_cloud boolean NOT NULL DEFAULT false,
    requests_per_minute bigint CHECK (requests_per_minute >= 0),
    tokens_per_minute bigint CHECK (tokens_per_minute >= 0),
    budget bigint CHECK (budget >= 0),
    budget_period text NOT NULL DEFAULT 'month' CHECK (budget_period IN ('day', 'month', 'total')),
    max_output_tokens bigint CHECK (max_output_tokens >= 1),
    weight_share integer NOT NULL DEFAULT 1 CHECK (weight_share BETWEEN 1 AND 1000),
    disabled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE gateway.api_keys (
    id text PRIMARY KEY,
    tenant_id text NOT NULL REFERENCES gateway.tenants ON DELETE RESTRICT,
    name text NOT NULL DEFAULT '' CHECK (length(name) <= 200),
    public_id text NOT NULL UNIQUE,
    hash text NOT NULL,
    last4 text NOT NULL DEFAULT '',
    -- After a rotation the previous secret works until its overlap ends.
    previous_public_id text UNIQUE,
    previous_hash text,
    previous_expires_at timestamptz,
    models text[],
    requests_per_minute bigint CHECK (requests_per_minute >= 0),
    tokens_per_minute bigint CHECK (tokens_per_minute >= 0),
    budget bigint CHECK (budget >= 0),
    budget_period text NOT NULL DEFAULT 'month' CHECK (budget_period IN ('day', 'month', 'total')),
    max_output_tokens bigint CHECK (max_output_tokens >= 1),
    expires_at timestamptz,
    disabled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_keys_tenant ON gateway.api_keys (tenant_id);

CREATE TABLE gateway.revocations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_id text NOT NULL REFERENCES gateway.api_keys ON DELETE RESTRICT,
    reason text NOT NULL DEFAULT '',
    revoked_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX revocations_key ON gateway.revocations (key_id);

CREATE TABLE gateway.models (
    name text PRIMARY KEY,
    blocked boolean NOT NULL DEFAULT false,
    milli_weight integer NOT NULL DEFAULT 1000 CHECK (milli_weight BETWEEN 0 AND 1000000),
    num_ctx integer CHECK (num_ctx > 0),
    digest text,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- The truth. Append-only; partitioned so that retention drops whole months.
CREATE TABLE gateway.ledger (
    request_id text NOT NULL,
    tenant_id text NOT NULL,
    key_id text NOT NULL,
    endpoint text NOT NULL,
    model text NOT NULL,
    status_code integer NOT NULL,
    outcome text NOT NULL,
    basis text NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    charged_tokens bigint NOT NULL CHECK (charged_tokens >= 0),
    held_tokens bigint NOT NULL,
    backend text,
    started_at timestamptz NOT NULL,
    ttft_ms double precision,
    duration_ms double precision NOT NULL,
    batch_id text,
    PRIMARY KEY (request_id, started_at)
) PARTITION BY RANGE (started_at);
CREATE INDEX ledger_tenant ON gateway.ledger (tenant_id, started_at);
CREATE INDEX ledger_key ON gateway.ledger (key_id, started_at);
CREATE INDEX ledger_batch ON gateway.ledger (batch_id) WHERE batch_id IS NOT NULL;
CREATE TABLE gateway.ledger_default PARTITION OF gateway.ledger DEFAULT;

-- What each tenant (`t:<id>`) and key (`k:<id>`) was charged on each UTC day. Any budget period
-- is a sum over days, so a period may change at once, and totals outlive the ledger's retention.
CREATE TABLE gateway.spend (
    scope text NOT NULL,
    period_start date NOT NULL,
    charged bigint NOT NULL,
    PRIMARY KEY (scope, period_start)
) WITH (fillfactor = 70);

CREATE TABLE gateway.audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    code text NOT NULL,
    status_code integer NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    client text,
    tenant_id text,
    key_id text,
    request_id text NOT NULL,
    count bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (id, at)
) PARTITION BY RANGE (at);
CREATE INDEX audit_log_at ON gateway.audit_log (at);
CREATE TABLE gateway.audit_log_default PARTITION OF gateway.audit_log DEFAULT;

CREATE TABLE gateway.admin_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    before jsonb,
    after jsonb
);

-- Monthly partitions for this month and the next two; rows outside fall into the default one.
CREATE FUNCTION gateway.ensure_partitions() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    month timestamptz;
    child text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('gateway.ensure_partitions'));
    FOREACH parent IN ARRAY ARRAY['ledger', 'audit_log'] LOOP
        FOR ahead IN 0..2 LOOP
            month := date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
            month := (month AT TIME ZONE 'UTC' + make_interval(months => ahead)) AT TIME ZONE 'UTC';
            child := parent || '_' || to_char(month AT TIME ZONE 'UTC', 'YYYYMM');
            IF to_regclass('gateway.' || child) IS NULL THEN
                EXECUTE format(
                    'CREATE TABLE gateway.%I PARTITION OF gateway.%I FOR VALUES FROM (%L) TO (%L)',
                    child, parent, month,
                    (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC');
            END IF;
        END LOOP;
    END LOOP;
END $$;
SELECT gateway.ensure_partitions();

-- Every change that a worker may have cached travels as NOTIFY, whoever made it.
CREATE FUNCTION gateway.announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CASE TG_TABLE_NAME
        WHEN 'revocations' THEN PERFORM pg_notify('gateway_changes', 'revoked:' || NEW.key_id);
        WHEN 'api_keys' THEN
            PERFORM pg_notify('gateway_changes', 'key:' || coalesce(NEW.id, OLD.id));
        WHEN 'tenants' THEN
            PERFORM pg_notify('gateway_changes', 'tenant:' || coalesce(NEW.id, OLD.id));
        ELSE PERFORM pg_notify('gateway_changes', 'models');
    END CASE;
    RETURN NULL;
END $$;
CREATE TRIGGER announce AFTER INSERT ON gateway.revocations
    FOR EACH ROW EXECUTE FUNCTION gateway.announce();
CREATE TRIGGER announce AFTER UPDATE OR DELETE ON gateway.api_keys
    FOR EACH ROW EXECUTE FUNCTION gateway.announce();
CREATE TRIGGER announce AFTER UPDATE OR DELETE ON gateway.tenants
    FOR EACH ROW EXECUTE FUNCTION gateway.announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE ON gateway.models
    FOR EACH ROW EXECUTE FUNCTION gateway.announce();
