-- Last step of a hydrate: assign the counters, unless anything moved since the first step.
-- ARGV: 1 run id, 2 generation, then triples scope, period, spent (rows of open holds left out).
-- Held is summed anew from the open holds. Another hydrate under way has to begin again.
if redis.call('HGET', KEYS[1], 'gen') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[2])
local held = {}
for at = 3, #ARGV, 3 do
  local name = ARGV[at] .. '|' .. ARGV[at + 1]
  redis.call('HSET', KEYS[2], 's|' .. name, ARGV[at + 2])
  held[name] = 0
end
local open = redis.call('HVALS', KEYS[3])
for _, text in ipairs(open) do
  local hold = parse_hold(text)
  for _, scope in ipairs({ 't', 'k:' .. hold.key }) do
    for _, period in ipairs(periods(hold.day)) do
      local name = scope .. '|' .. period
      if held[name] then held[name] = held[name] + hold.cost end
    end
  end
end
for name, units in pairs(held) do redis.call('HSET', KEYS[2], 'h|' .. name, int(units)) end
redis.call('HSET', KEYS[1], 'warm', ARGV[1])
bump(clock())
return 1
