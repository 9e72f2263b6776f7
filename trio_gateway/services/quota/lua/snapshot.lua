-- What a tenant's account says right now; changes nothing. ARGV: 1 run id.
-- Returns whether the counters can be trusted (1 or 0), the instant, the counters, and the open holds.
local warm = redis.call('HGET', KEYS[1], 'warm') == ARGV[1]
return { warm and 1 or 0, clock(), redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3]) }
