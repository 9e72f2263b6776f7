-- Append rows and add what they charge to the daily sums, for those not there before.
-- $1: a JSON array of rows; `started_us` is microseconds since the epoch.
-- Rows and sums are taken in order, so that two writers who share some cannot deadlock.
WITH added AS (
    INSERT INTO gateway.ledger (
        request_id, tenant_id, key_id, endpoint, model, status_code, outcome, basis, prompt_tokens,
        completion_tokens, charged_tokens, held_tokens, backend, started_at, ttft_ms, duration_ms,
        batch_id)
    SELECT
        request_id, tenant_id, key_id, endpoint, model, status_code, outcome, basis, prompt_tokens,
        completion_tokens, charged_tokens, held_tokens, backend,
        timestamptz 'epoch' + started_us * interval '1 microsecond', ttft_ms, duration_ms, batch_id
    FROM jsonb_to_recordset($1::text::jsonb) AS given (
        request_id text, tenant_id text, key_id text, endpoint text, model text, status_code int,
        outcome text, basis text, prompt_tokens bigint, completion_tokens bigint,
        charged_tokens bigint, held_tokens bigint, backend text, started_us bigint,
        ttft_ms float8, duration_ms float8, batch_id text)
    ORDER BY request_id, started_us
    ON CONFLICT (request_id, started_at) DO NOTHING
    RETURNING request_id, tenant_id, key_id, charged_tokens, started_at
), sums AS (
    SELECT scope, day, sum(charged_tokens) AS charged
    FROM added, LATERAL (VALUES ('t:' || tenant_id), ('k:' || key_id)) AS s (scope),
        LATERAL (SELECT (started_at AT TIME ZONE 'UTC')::date AS day) AS d
    GROUP BY scope, day
    HAVING sum(charged_tokens) > 0
    ORDER BY scope, day
), spent AS (
    INSERT INTO gateway.spend (scope, period_start, charged)
    SELECT scope, day, charged FROM sums ORDER BY scope, day
    ON CONFLICT (scope, period_start) DO UPDATE SET charged = spend.charged + EXCLUDED.charged
)
SELECT request_id FROM added
