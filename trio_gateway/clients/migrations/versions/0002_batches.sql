-- Files, whose contents are in the blob store under `blob`. A deleted file that a batch still
-- reads is hidden by `deleted_at` and purged when the batch has ended.
CREATE TABLE gateway.files (
    id text PRIMARY KEY,
    ordinal bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL REFERENCES gateway.tenants ON DELETE RESTRICT,
    purpose text NOT NULL,
    filename text NOT NULL,
    bytes bigint NOT NULL CHECK (bytes >= 0),
    blob text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    deleted_at timestamptz
);
CREATE INDEX files_tenant ON gateway.files (tenant_id, ordinal) WHERE deleted_at IS NULL;
CREATE INDEX files_expiry ON gateway.files (expires_at) WHERE deleted_at IS NULL;
CREATE INDEX files_deleted ON gateway.files (deleted_at) WHERE deleted_at IS NOT NULL;

-- Blobs to delete once `due`; a path that ends in a slash is everything below it. A blob is
-- listed before its first byte is written and struck off in the transaction that makes it
-- somebody's, so that a crash in between leaves nothing behind.
CREATE TABLE gateway.doomed_blobs (
    path text PRIMARY KEY,
    due timestamptz NOT NULL
);
CREATE INDEX doomed_blobs_due ON gateway.doomed_blobs (due);

-- Where the installation's blobs are known to be: the marker's name in that store.
ALTER TABLE gateway.installation ADD COLUMN blob_marker text;

CREATE TABLE gateway.batches (
    id text PRIMARY KEY,
    ordinal bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id text NOT NULL REFERENCES gateway.tenants ON DELETE RESTRICT,
    key_id text NOT NULL REFERENCES gateway.api_keys ON DELETE RESTRICT,
    endpoint text NOT NULL,
    input_file_id text NOT NULL,
    input_blob text, -- set from validation on: the file cannot be purged under the batch
    completion_window text NOT NULL,
    metadata jsonb,
    output_expires_after integer, -- seconds
    idempotency_key text,
    fingerprint bytea NOT NULL,
    status text NOT NULL DEFAULT 'validating' CHECK (status IN ('validating', 'failed',
        'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
    errors jsonb, -- the array that the object shows as errors.data
    output_file_id text,
    error_file_id text,
    models text[] NOT NULL DEFAULT '{}', -- canonical; filled by validation
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    in_progress_at timestamptz,
    finalizing_at timestamptz,
    completed_at timestamptz,
    failed_at timestamptz,
    expired_at timestamptz,
    cancelling_at timestamptz,
    cancelled_at timestamptz,
    total integer NOT NULL DEFAULT 0,
    completed integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    paused text, -- why no line is dispatched just now, such as insufficient_quota
    resume_at timestamptz, -- until then no line is dispatched
    lease_token uuid, -- of whoever validates or finishes it
    lease_until timestamptz,
    UNIQUE (tenant_id, idempotency_key)
) WITH (fillfactor = 70);
CREATE INDEX batches_tenant ON gateway.batches (tenant_id, ordinal);
CREATE INDEX batches_open ON gateway.batches (status, ordinal)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
CREATE INDEX batches_tenant_open ON gateway.batches (tenant_id)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
CREATE INDEX batches_input ON gateway.batches (input_blob) WHERE input_blob IS NOT NULL;

-- One row a request, from validation to the end of the batch. Requests and results are in blobs.
CREATE TABLE gateway.batch_lines (
    batch_id text NOT NULL REFERENCES gateway.batches ON DELETE CASCADE,
    line integer NOT NULL, -- physical, from 1
    custom_id text NOT NULL,
    model text NOT NULL, -- canonical
    start bigint NOT NULL, -- of the line in the input blob, in bytes
    length integer NOT NULL, -- without its line break
    state text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'leased', 'succeeded', 'failed', 'abandoned')),
    attempts smallint NOT NULL DEFAULT 0, -- that failed
    not_before timestamptz NOT NULL DEFAULT '-infinity',
    lease_token uuid,
    lease_until timestamptz,
    request_id text, -- of the dispatch that made the result
    result_blob text,
    result_start bigint,
    result_length integer,
    PRIMARY KEY (batch_id, line)
) WITH (fillfactor = 50);
CREATE INDEX batch_lines_queued ON gateway.batch_lines (batch_id, model, line)
    WHERE state = 'queued';
CREATE INDEX batch_lines_leased ON gateway.batch_lines (lease_until) WHERE state = 'leased';

-- Engines hear of what they may have to do.
CREATE FUNCTION gateway.announce_batch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gateway_changes', 'batch:' || NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER announce_new AFTER INSERT ON gateway.batches
    FOR EACH ROW EXECUTE FUNCTION gateway.announce_batch();
CREATE TRIGGER announce_change AFTER UPDATE ON gateway.batches
    FOR EACH ROW WHEN (
        OLD.status IS DISTINCT FROM NEW.status
        OR (NEW.status = 'in_progress' AND NEW.completed + NEW.failed = NEW.total)
    ) EXECUTE FUNCTION gateway.announce_batch();
