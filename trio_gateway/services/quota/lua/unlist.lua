-- KEYS: 1 index of tenants with holds. ARGV: 1 tenant, 2 the score read. Takes the tenant out unless a
-- call was announced since.
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
