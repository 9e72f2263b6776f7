-- Shared by every script of a tenant; the loader puts this text in front of each.
-- KEYS: 1 meta, 2 counters, 3 holds, 4 leases, 5 window sums; all under the tenant's hash tag.
-- Instants are microseconds of Redis TIME; money is in units.
--
-- meta      gen: bumped by every settle, cold mark and re-created hold; starts from TIME, so never reused
--           warm: the server's run id while the counters can be trusted
-- counters  s|scope|period spent, h|scope|period held; scope is t (tenant) or k:<key id>
-- holds     request id -> started|day|cost|ceiling|key id|windows hit|opaque
-- leases    request id -> phase|renewals|lease until|0|output|final row
local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- Adding zero turns -0, which Redis does not take for a number, into 0.
local function int(n) return string.format('%.0f', n + 0) end

local function bump(now)
  if redis.call('HSETNX', KEYS[1], 'gen', int(now)) == 0 then
    redis.call('HINCRBY', KEYS[1], 'gen', 1)
  end
end

local function chill(now)
  redis.call('HDEL', KEYS[1], 'warm')
  bump(now)
end

-- Civil date of an instant, UTC (days-from-civil, inverted).
local function day_of(now)
  local z = math.floor(now / 86400000000) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local d = doy - math.floor((153 * mp + 2) / 5) + 1
  local m = mp < 10 and mp + 3 or mp - 9
  local y = yoe + era * 400 + (m <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02d', y, m, d)
end

local function periods(day) return { day, string.sub(day, 1, 7), 'total' } end

local function parse_hold(text)
  local started, day, cost, ceiling, key, hit, opaque =
    string.match(text, '^(%d+)|([%d-]+)|(%d+)|(%d+)|([^|]*)|([^|]*)|(.*)$')
  return { started = tonumber(started), day = day, cost = tonumber(cost),
           ceiling = tonumber(ceiling), key = key, hit = hit, opaque = opaque }
end

-- Add to every counter that exists for this hold's scopes and periods; one that does not exist
-- is not needed by anybody, or makes its tenant hydrate.
local function adjust(hold, held, spent)
  local names = {}
  for _, scope in ipairs({ 't', 'k:' .. hold.key }) do
    for _, period in ipairs(periods(hold.day)) do names[#names + 1] = '|' .. scope .. '|' .. period end
  end
  local fields = {}
  for i, name in ipairs(names) do fields[i] = 'h' .. name end
  local there = redis.call('HMGET', KEYS[2], unpack(fields))
  for i, name in ipairs(names) do
    if there[i] then
      redis.call('HINCRBY', KEYS[2], fields[i], int(held))
      if spent ~= 0 then redis.call('HINCRBY', KEYS[2], 's' .. name, int(spent)) end
    end
  end
end
