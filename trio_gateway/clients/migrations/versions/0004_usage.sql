-- What was used, summed as the ledger grows, so that no list or chart has to scan it. Every row
-- is counted in the transaction that writes it, whoever does: a worker of an earlier release, a
-- sweep, or somebody with SQL.
CREATE FUNCTION gateway.is_failure(status_code integer, outcome text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    -- A stream that breaks has answered 200 before; an operator's cut is no fault.
    SELECT outcome IN ('upstream_error', 'timeout', 'lost')
        OR (status_code >= 500 AND outcome NOT IN ('cut', 'drained'))
$$;

CREATE TABLE gateway.usage_daily (
    day date NOT NULL,
    tenant_id text NOT NULL,
    model text NOT NULL,
    outcome text NOT NULL,
    requests bigint NOT NULL,
    failures bigint NOT NULL, -- see gateway.is_failure
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    charged_tokens bigint NOT NULL,
    ttft_count bigint NOT NULL, -- calls that had a first token; the columns below are of them
    ttft_ms double precision NOT NULL,
    ttft_10 bigint NOT NULL, -- first token within 10 ms, and so on, each including the one before
    ttft_30 bigint NOT NULL,
    ttft_100 bigint NOT NULL,
    ttft_300 bigint NOT NULL,
    ttft_1000 bigint NOT NULL,
    ttft_3000 bigint NOT NULL,
    ttft_10000 bigint NOT NULL,
    PRIMARY KEY (day, tenant_id, model, outcome)
) WITH (fillfactor = 70);
CREATE INDEX usage_daily_tenant ON gateway.usage_daily (tenant_id, day);

-- The same by the hour, for the last weeks alone: see `services/ledger/retention.py`.
CREATE TABLE gateway.usage_hourly (
    hour timestamptz NOT NULL,
    LIKE gateway.usage_daily,
    PRIMARY KEY (hour, tenant_id, model, outcome)
) WITH (fillfactor = 70);
ALTER TABLE gateway.usage_hourly DROP COLUMN day;

CREATE INDEX usage_hourly_tenant ON gateway.usage_hourly (tenant_id, hour);

-- The same over all tenants, by one thing at a time, so that what everybody used is read from few
-- rows however many tenants there are. A row that all writers share would make them wait for each
-- other: it is split into some shards, of which each connection has one.
CREATE TABLE gateway.usage_totals (
    unit text NOT NULL,
    at timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind IN ('model', 'outcome', 'tenant')),
    name text NOT NULL,
    shard smallint NOT NULL,
    LIKE gateway.usage_daily,
    PRIMARY KEY (unit, kind, at, name, shard)
) PARTITION BY LIST (unit);
ALTER TABLE gateway.usage_totals DROP COLUMN day, DROP COLUMN tenant_id, DROP COLUMN model,
    DROP COLUMN outcome;
-- Apart, so that the few rows of days do not lie scattered among those of hours.
CREATE TABLE gateway.usage_totals_hour PARTITION OF gateway.usage_totals FOR VALUES IN ('hour')
    WITH (fillfactor = 70);
CREATE TABLE gateway.usage_totals_day PARTITION OF gateway.usage_totals FOR VALUES IN ('day')
    WITH (fillfactor = 70);

CREATE INDEX ledger_started ON gateway.ledger (started_at, request_id);

CREATE FUNCTION gateway.count_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH rows AS MATERIALIZED (
        SELECT date_trunc('hour', started_at AT TIME ZONE 'UTC') AS hour, tenant_id, model, outcome,
            count(*) AS requests,
            count(*) FILTER (WHERE gateway.is_failure(status_code, outcome)) AS failures,
            sum(prompt_tokens)::bigint AS prompt_tokens,
            sum(completion_tokens)::bigint AS completion_tokens,
            sum(charged_tokens)::bigint AS charged_tokens,
            count(ttft_ms) AS ttft_count,
            coalesce(sum(ttft_ms), 0) AS ttft_ms,
            count(*) FILTER (WHERE ttft_ms <= 10) AS ttft_10,
            count(*) FILTER (WHERE ttft_ms <= 30) AS ttft_30,
            count(*) FILTER (WHERE ttft_ms <= 100) AS ttft_100,
            count(*) FILTER (WHERE ttft_ms <= 300) AS ttft_300,
            count(*) FILTER (WHERE ttft_ms <= 1000) AS ttft_1000,
            count(*) FILTER (WHERE ttft_ms <= 3000) AS ttft_3000,
            count(*) FILTER (WHERE ttft_ms <= 10000) AS ttft_10000
        FROM added GROUP BY 1, 2, 3, 4
    ), daily AS (
        INSERT INTO gateway.usage_daily AS u (day, tenant_id, model, outcome, requests, failures,
            prompt_tokens, completion_tokens, charged_tokens, ttft_count, ttft_ms, ttft_10, ttft_30, ttft_100,
            ttft_300, ttft_1000, ttft_3000, ttft_10000)
        SELECT hour::date, tenant_id, model, outcome, sum(requests), sum(failures),
            sum(prompt_tokens), sum(completion_tokens), sum(charged_tokens), sum(ttft_count),
            sum(ttft_ms), sum(ttft_10), sum(ttft_30), sum(ttft_100), sum(ttft_300), sum(ttft_1000), sum(ttft_3000),
            sum(ttft_10000)
        FROM rows GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        ON CONFLICT (day, tenant_id, model, outcome) DO UPDATE SET
            requests = u.requests + excluded.requests,
            failures = u.failures + excluded.failures,
            prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = u.completion_tokens + excluded.completion_tokens,
            charged_tokens = u.charged_tokens + excluded.charged_tokens,
            ttft_count = u.ttft_count + excluded.ttft_count,
            ttft_ms = u.ttft_ms + excluded.ttft_ms,
            ttft_10 = u.ttft_10 + excluded.ttft_10,
            ttft_30 = u.ttft_30 + excluded.ttft_30,
            ttft_100 = u.ttft_100 + excluded.ttft_100,
            ttft_300 = u.ttft_300 + excluded.ttft_300,
            ttft_1000 = u.ttft_1000 + excluded.ttft_1000,
            ttft_3000 = u.ttft_3000 + excluded.ttft_3000,
            ttft_10000 = u.ttft_10000 + excluded.ttft_10000
    ), totals AS (
        INSERT INTO gateway.usage_totals AS u (unit, at, kind, name, shard, requests, failures, prompt_tokens, completion_tokens, charged_tokens, ttft_count, ttft_ms, ttft_10, ttft_30, ttft_100,
            ttft_300, ttft_1000, ttft_3000, ttft_10000)
        SELECT unit, at, kind, name, CASE kind WHEN 'tenant' THEN 0 ELSE own END, sum(requests), sum(failures), sum(prompt_tokens),
            sum(completion_tokens), sum(charged_tokens), sum(ttft_count), sum(ttft_ms), sum(ttft_10), sum(ttft_30), sum(ttft_100),
            sum(ttft_300), sum(ttft_1000), sum(ttft_3000), sum(ttft_10000)
        FROM rows, LATERAL (SELECT pg_backend_pid() % 8 AS own) AS s,
            LATERAL (VALUES ('hour', hour AT TIME ZONE 'UTC'),
                ('day', date_trunc('day', hour) AT TIME ZONE 'UTC')) AS t (unit, at),
            LATERAL (VALUES ('model', model), ('outcome', outcome), ('tenant', tenant_id))
                AS k (kind, name)
        GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 3, 2, 4, 5
        ON CONFLICT (unit, kind, at, name, shard) DO UPDATE SET
            requests = u.requests + excluded.requests,
            failures = u.failures + excluded.failures,
            prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = u.completion_tokens + excluded.completion_tokens,
            charged_tokens = u.charged_tokens + excluded.charged_tokens,
            ttft_count = u.ttft_count + excluded.ttft_count,
            ttft_ms = u.ttft_ms + excluded.ttft_ms,
            ttft_10 = u.ttft_10 + excluded.ttft_10,
            ttft_30 = u.ttft_30 + excluded.ttft_30,
            ttft_100 = u.ttft_100 + excluded.ttft_100,
            ttft_300 = u.ttft_300 + excluded.ttft_300,
            ttft_1000 = u.ttft_1000 + excluded.ttft_1000,
            ttft_3000 = u.ttft_3000 + excluded.ttft_3000,
            ttft_10000 = u.ttft_10000 + excluded.ttft_10000
    )
    INSERT INTO gateway.usage_hourly AS u (hour, tenant_id, model, outcome, requests, failures,
        prompt_tokens, completion_tokens, charged_tokens, ttft_count, ttft_ms, ttft_10, ttft_30, ttft_100, ttft_300,
        ttft_1000, ttft_3000, ttft_10000)
    SELECT hour AT TIME ZONE 'UTC', tenant_id, model, outcome, requests, failures, prompt_tokens,
        completion_tokens, charged_tokens, ttft_count, ttft_ms, ttft_10, ttft_30, ttft_100, ttft_300, ttft_1000,
        ttft_3000, ttft_10000
    FROM rows ORDER BY 1, 2, 3, 4
    ON CONFLICT (hour, tenant_id, model, outcome) DO UPDATE SET
        requests = u.requests + excluded.requests,
        failures = u.failures + excluded.failures,
        prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = u.completion_tokens + excluded.completion_tokens,
        charged_tokens = u.charged_tokens + excluded.charged_tokens,
        ttft_count = u.ttft_count + excluded.ttft_count,
        ttft_ms = u.ttft_ms + excluded.ttft_ms,
        ttft_10 = u.ttft_10 + excluded.ttft_10,
        ttft_30 = u.ttft_30 + excluded.ttft_30,
        ttft_100 = u.ttft_100 + excluded.ttft_100,
        ttft_300 = u.ttft_300 + excluded.ttft_300,
        ttft_1000 = u.ttft_1000 + excluded.ttft_1000,
        ttft_3000 = u.ttft_3000 + excluded.ttft_3000,
        ttft_10000 = u.ttft_10000 + excluded.ttft_10000;
    RETURN NULL;
END $$;

-- From here on no row is written before this transaction has ended, so that none is missed.
CREATE TRIGGER count_usage AFTER INSERT ON gateway.ledger
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION gateway.count_usage();

INSERT INTO gateway.usage_hourly (hour, tenant_id, model, outcome, requests, failures,
    prompt_tokens, completion_tokens, charged_tokens, ttft_count, ttft_ms, ttft_10, ttft_30, ttft_100, ttft_300,
    ttft_1000, ttft_3000, ttft_10000)
SELECT date_trunc('hour', started_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', tenant_id, model,
    outcome, count(*), count(*) FILTER (WHERE gateway.is_failure(status_code, outcome)), sum(prompt_tokens),
    sum(completion_tokens), sum(charged_tokens), count(ttft_ms), coalesce(sum(ttft_ms), 0),
    count(*) FILTER (WHERE ttft_ms <= 10), count(*) FILTER (WHERE ttft_ms <= 30),
    count(*) FILTER (WHERE ttft_ms <= 100), count(*) FILTER (WHERE ttft_ms <= 300),
    count(*) FILTER (WHERE ttft_ms <= 1000), count(*) FILTER (WHERE ttft_ms <= 3000),
    count(*) FILTER (WHERE ttft_ms <= 10000)
FROM gateway.ledger GROUP BY 1, 2, 3, 4;
INSERT INTO gateway.usage_daily (day, tenant_id, model, outcome, requests, failures,
    prompt_tokens, completion_tokens, charged_tokens, ttft_count, ttft_ms, ttft_10, ttft_30, ttft_100, ttft_300,
    ttft_1000, ttft_3000, ttft_10000)
SELECT (hour AT TIME ZONE 'UTC')::date, tenant_id, model, outcome, sum(requests), sum(failures),
    sum(prompt_tokens), sum(completion_tokens), sum(charged_tokens), sum(ttft_count), sum(ttft_ms), sum(ttft_10), sum(ttft_30),
    sum(ttft_100), sum(ttft_300), sum(ttft_1000), sum(ttft_3000), sum(ttft_10000)
FROM gateway.usage_hourly GROUP BY 1, 2, 3, 4;
INSERT INTO gateway.usage_totals (unit, at, kind, name, shard, requests, failures, prompt_tokens, completion_tokens, charged_tokens, ttft_count, ttft_ms, ttft_10, ttft_30, ttft_100,
            ttft_300, ttft_1000, ttft_3000, ttft_10000)
SELECT unit, at, kind, name, 0, sum(requests), sum(failures), sum(prompt_tokens),
            sum(completion_tokens), sum(charged_tokens), sum(ttft_count), sum(ttft_ms), sum(ttft_10), sum(ttft_30), sum(ttft_100),
            sum(ttft_300), sum(ttft_1000), sum(ttft_3000), sum(ttft_10000)
FROM gateway.usage_hourly,
    LATERAL (VALUES ('hour', hour),
        ('day', date_trunc('day', hour AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')) AS t (unit, at),
    LATERAL (VALUES ('model', model), ('outcome', outcome), ('tenant', tenant_id)) AS k (kind, name)
GROUP BY 1, 2, 3, 4;
