-- First step of a hydrate: the generation, the instant, the open holds, and the counters in use.
local now = clock()
if redis.call('HEXISTS', KEYS[1], 'gen') == 0 then bump(now) end
return { redis.call('HGET', KEYS[1], 'gen'), now, redis.call('HKEYS', KEYS[3]), redis.call('HKEYS', KEYS[2]) }
