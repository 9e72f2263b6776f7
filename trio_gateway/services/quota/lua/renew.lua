-- Renew live holds. ARGV: 1 lease, then for each hold: request id, phase, renewals, 0, output, final
-- row, the hold's own text. A hold that is not there is put back, and the tenant is cold.
-- Returns the request ids of the holds put back.
local now = clock()
local back = {}
for at = 2, #ARGV, 7 do
  local rid = ARGV[at]
  if redis.call('HSET', KEYS[3], rid, ARGV[at + 6]) == 1 then
    chill(now)
    back[#back + 1] = rid
  end
  redis.call('HSET', KEYS[4], rid, table.concat({ ARGV[at + 1], ARGV[at + 2],
    int(now + tonumber(ARGV[1])), ARGV[at + 3], ARGV[at + 4], ARGV[at + 5] }, '|'))
end
return back
