-- Who may use the admin listener. A token is found by `lookup`, the first digits of its SHA-256,
-- and proven against `hash`, argon2id. A hash that begins with `sha256:` is that of an earlier
-- release; it is replaced at the token's next use.
CREATE TABLE gateway.admins (
    id text PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$'),
    role text NOT NULL CHECK (role IN ('admin', 'viewer', 'metrics')),
    lookup text NOT NULL UNIQUE,
    hash text NOT NULL,
    expires_at timestamptz,
    disabled_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Sessions of the dashboard, by the SHA-256 of the cookie's secret. `credential` is what the
-- session rests on: `admin:<lookup>` ends with that very token, `oidc:<subject>` by itself.
CREATE TABLE gateway.admin_sessions (
    id text PRIMARY KEY,
    credential text NOT NULL,
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('admin', 'viewer')),
    csrf text NOT NULL,
    client text,
    created_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX admin_sessions_expiry ON gateway.admin_sessions (expires_at);

-- Failed logins, by `account:<lookup>` and `client:<address>`.
CREATE TABLE gateway.login_failures (
    scope text PRIMARY KEY,
    failures integer NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX login_failures_since ON gateway.login_failures (since);

CREATE INDEX admin_events_subject ON gateway.admin_events (subject, id);
CREATE INDEX admin_events_at ON gateway.admin_events (at);
CREATE INDEX audit_log_tenant ON gateway.audit_log (tenant_id, at) WHERE tenant_id IS NOT NULL;

-- A page of keys by age costs a page, however many keys a tenant has.
CREATE INDEX api_keys_age ON gateway.api_keys (tenant_id, created_at, id);
DROP INDEX gateway.api_keys_tenant;
