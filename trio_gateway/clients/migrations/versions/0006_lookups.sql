-- Keys by the start of what people know of them: bytes in order, whatever the database's collation.
CREATE INDEX api_keys_name ON gateway.api_keys (lower(name) COLLATE "C", id);
CREATE INDEX api_keys_public ON gateway.api_keys (public_id COLLATE "C");

-- Keys by what became of them, each list in the order of when.
CREATE INDEX api_keys_created ON gateway.api_keys (created_at, id);
CREATE INDEX api_keys_expiry ON gateway.api_keys (expires_at, id) WHERE expires_at IS NOT NULL;
CREATE INDEX api_keys_disabled ON gateway.api_keys (disabled_at, id) WHERE disabled_at IS NOT NULL;
CREATE INDEX tenants_disabled ON gateway.tenants (disabled_at) WHERE disabled_at IS NOT NULL;
CREATE INDEX revocations_at ON gateway.revocations (revoked_at, key_id);

-- Changes by who made them, and by what they were.
CREATE INDEX admin_events_actor ON gateway.admin_events (actor, id);
CREATE INDEX admin_events_action ON gateway.admin_events (action, id);
