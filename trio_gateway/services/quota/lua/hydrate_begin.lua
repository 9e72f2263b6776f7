-- First step of a hydrate. ARGV: 1 run id, then pairs scope, kind of period: the counters needed.
-- Returns nothing where all of them can be trusted already. Else the generation, the instant, the open
-- holds and the counters in use; and from here to a last step that succeeds the tenant is cold, so
-- that no call can come and go whose row would be counted twice.
local now = clock()
local labels = { total = 'total' }
labels.day = day_of(now)
labels.month = string.sub(labels.day, 1, 7)
local there = redis.call('HGET', KEYS[1], 'warm') == ARGV[1]
for at = 2, #ARGV, 2 do
  there = there and redis.call('HEXISTS', KEYS[2], 's|' .. ARGV[at] .. '|' .. labels[ARGV[at + 1]]) == 1
end
if there then return false end
redis.call('HDEL', KEYS[1], 'warm')
if redis.call('HEXISTS', KEYS[1], 'gen') == 0 then bump(now) end
return { redis.call('HGET', KEYS[1], 'gen'), now, redis.call('HKEYS', KEYS[3]), redis.call('HKEYS', KEYS[2]) }
