-- Remove a hold and charge what its stored ledger row says. ARGV: 1 request id, 2 charged units.
-- KEYS 6..9 as in reserve. A hold that is not there changes no number and makes the tenant cold.
local now = clock()
local text = redis.call('HGET', KEYS[3], ARGV[1])
if not text then
  chill(now)
  return 0
end
local hold = parse_hold(text)
local charged = tonumber(ARGV[2])
adjust(hold, -hold.cost, charged)
local hit = int(hold.cost) .. '|' .. ARGV[1]
for _, window in ipairs({ { 't', KEYS[7], 't' }, { 'k', KEYS[9], 'k:' .. hold.key } }) do
  if charged ~= hold.cost and string.find(hold.hit, window[1], 1, true)
    and redis.call('ZSCORE', window[2], hit) then
    -- The new one first: a set that were empty in between would lose its time to live.
    if charged > 0 then
      redis.call('ZADD', window[2], int(hold.started), int(charged) .. '|' .. ARGV[1])
    end
    redis.call('ZREM', window[2], hit)
    redis.call('HINCRBY', KEYS[5], window[3], int(charged - hold.cost))
  end
end
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
bump(now)
return 1
