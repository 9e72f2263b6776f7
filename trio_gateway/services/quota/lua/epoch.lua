-- KEYS: 1 epoch (outside every tenant's tag). ARGV: 1 run id. The epoch names the server's life; a
-- missing or different one is rewritten. Returns {since when, now}.
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local known = redis.call('GET', KEYS[1])
local since = known and string.match(known, '^' .. ARGV[1] .. '|(%d+)$')
if not since then
  since = string.format('%.0f', now)
  redis.call('SET', KEYS[1], ARGV[1] .. '|' .. since)
end
return { tonumber(since), now }
