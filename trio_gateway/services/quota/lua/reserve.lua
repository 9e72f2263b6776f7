-- Admit one call: windows and budgets of key and tenant together, or nothing at all.
-- KEYS 6..9: tenant requests, tenant tokens, key requests, key tokens (sorted sets).
-- ARGV: 1 run id, 2 request id, 3 key id, 4 prompt estimate, 5 output ask (tokens), 6 least
-- output, 7 weight in thousandths, 8 lease, 9 phase, 10 calls in flight allowed, 11 window,
-- 12 opaque, then for tenant (13..16) and key (17..20): requests, tokens, budget (-1 unlimited), period;
-- 21 what share of a window it may fill, in thousandths (all of it where absent).
-- Returns {'cold'} | {'no', reason, scope, retry after, numbers...} | {'ok', numbers..., started, ceiling, cost, hold}
local now = clock()
local run, rid, key = ARGV[1], ARGV[2], ARGV[3]
local estimate, ask, least = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local milli, lease, window = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[11])
local share = tonumber(ARGV[21] or '1000')
if redis.call('HGET', KEYS[1], 'warm') ~= run then return { 'cold' } end
local day = day_of(now)

local function units(tokens) return math.ceil(tokens * milli / 1000) end

local scopes = {}
for i, name in ipairs({ 't', 'k:' .. key }) do
  local at = 13 + (i - 1) * 4
  local period = ARGV[at + 3]
  if period == 'day' then period = day elseif period == 'month' then period = string.sub(day, 1, 7) end
  scopes[i] = { name = name, hit = i == 1 and 't' or 'k',
    requests = tonumber(ARGV[at]), tokens = tonumber(ARGV[at + 1]), budget = tonumber(ARGV[at + 2]),
    period = period, rset = KEYS[4 + 2 * i], tset = KEYS[5 + 2 * i] }
end

-- What is left of a window for this call; one that nobody has hit is all of it for anybody, so
-- that a call larger than its share is not kept out for ever.
local function left_of(limit, left)
  if share >= 1000 or left >= limit then return left end
  return math.min(left, math.floor(limit * share / 1000) - (limit - left))
end

-- What each scope has left; expired hits leave first.
for _, s in ipairs(scopes) do
  if s.requests >= 0 then
    redis.call('ZREMRANGEBYSCORE', s.rset, '-inf', int(now - window))
    s.rleft = left_of(s.requests, s.requests - redis.call('ZCARD', s.rset))
  end
  if s.tokens >= 0 then
    local gone = redis.call('ZRANGEBYSCORE', s.tset, '-inf', int(now - window))
    if #gone > 0 then
      local freed = 0
      for _, member in ipairs(gone) do freed = freed + tonumber(string.match(member, '^%d+')) end
      redis.call('ZREMRANGEBYSCORE', s.tset, '-inf', int(now - window))
      redis.call('HINCRBY', KEYS[5], s.name, int(-freed))
    end
    -- A set that expired as a whole took its hits along and left their sum.
    if redis.call('EXISTS', s.tset) == 0 then redis.call('HDEL', KEYS[5], s.name) end
    s.tleft = left_of(s.tokens, s.tokens - tonumber(redis.call('HGET', KEYS[5], s.name) or '0'))
  end
  if s.budget >= 0 then
    local pair = redis.call('HMGET', KEYS[2], 's|' .. s.name .. '|' .. s.period, 'h|' .. s.name .. '|' .. s.period)
    if not pair[1] or not pair[2] then
      chill(now)
      return { 'cold' }
    end
    s.bleft = s.budget - tonumber(pair[1]) - tonumber(pair[2])
  end
end

-- For the headers: of two scopes the tighter; -1 where unlimited. Resets count from the last hit.
local function numbers(cost, hits)
  local out = {}
  local function tighter(limit, left, set)
    local best
    for _, s in ipairs(scopes) do
      if s[limit] >= 0 then
        local remaining = math.max(0, s[left] - (limit == 'requests' and hits or cost))
        if not best or remaining < best[2] then best = { s[limit], remaining, s } end
      end
    end
    if not best then
      out[#out + 1] = -1; out[#out + 1] = -1; out[#out + 1] = -1
      return
    end
    local reset = 0
    if set then
      local last = redis.call('ZRANGE', best[3][set], -1, -1, 'WITHSCORES')
      if #last > 0 then reset = math.max(0, tonumber(last[2]) + window - now) end
    else
      reset = best[3].name == 't' and 1 or 2
    end
    out[#out + 1] = best[1]; out[#out + 1] = best[2]; out[#out + 1] = reset
  end
  tighter('requests', 'rleft', 'rset')
  tighter('tokens', 'tleft', 'tset')
  tighter('budget', 'bleft', nil)
  return out
end

local function refuse(reason, scope, wait)
  local out = { 'no', reason, scope, wait }
  for _, n in ipairs(numbers(0, 0)) do out[#out + 1] = n end
  return out
end

local floor_tokens = estimate + math.min(least, ask)
local need = units(floor_tokens)
for _, s in ipairs(scopes) do
  if s.budget >= 0 and s.bleft < math.max(need, 1) then return refuse('budget', s.name, -1) end
end
for _, s in ipairs(scopes) do
  if s.tokens >= 0 and units(estimate) > s.tokens then return refuse('prompt', s.name, -1) end
end
if redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[10]) then return refuse('in_flight', 't', 1000000) end
for _, s in ipairs(scopes) do
  if s.requests >= 0 and s.rleft < 1 then
    local wait = -1
    if s.requests > 0 then
      local last = math.min(1 - s.rleft, redis.call('ZCARD', s.rset)) - 1 -- of the hits that have to leave
      wait = tonumber(redis.call('ZRANGE', s.rset, last, last, 'WITHSCORES')[2]) + window - now
    end
    return refuse('requests', s.name, wait)
  end
end
for _, s in ipairs(scopes) do
  if s.tokens >= 0 and s.tleft < math.max(need, 1) then
    local wait, left = -1, s.tleft
    if math.max(need, 1) <= s.tokens then
      local last
      for _, member in ipairs(redis.call('ZRANGE', s.tset, 0, -1)) do
        left, last = left + tonumber(string.match(member, '^%d+')), member
        if left >= math.max(need, 1) then break end
      end
      if last then wait = tonumber(redis.call('ZSCORE', s.tset, last)) + window - now end
    end
    return refuse('tokens', s.name, wait)
  end
end

-- The ceiling: what was asked, and what the tightest scope can still pay for.
local ceiling = ask
if milli > 0 then
  for _, s in ipairs(scopes) do
    for _, left in ipairs({ s.tokens >= 0 and s.tleft or false, s.budget >= 0 and s.bleft or false }) do
      if left then ceiling = math.min(ceiling, math.floor(left * 1000 / milli) - estimate) end
    end
  end
end
ceiling = math.max(ceiling, 0)
local cost = units(estimate + ceiling)

local out = numbers(cost, 1)
local hit = ''
for _, s in ipairs(scopes) do
  if s.requests >= 0 then
    redis.call('ZADD', s.rset, int(now), rid)
    redis.call('PEXPIRE', s.rset, math.ceil(window / 1000) + 1000)
  end
  if s.tokens >= 0 then
    redis.call('ZADD', s.tset, int(now), int(cost) .. '|' .. rid)
    redis.call('HINCRBY', KEYS[5], s.name, int(cost))
    redis.call('PEXPIRE', s.tset, math.ceil(window / 1000) + 1000)
    hit = hit .. s.hit
  end
end
-- The hit just made is the last one, so the windows are whole again one window from now.
if out[1] >= 0 then out[3] = window end
if out[4] >= 0 then out[6] = window end
local text = int(now) .. '|' .. day .. '|' .. int(cost) .. '|' .. int(ceiling) .. '|' .. key .. '|' .. hit .. '|' .. ARGV[12]
adjust({ key = key, day = day }, cost, 0)
redis.call('HSET', KEYS[3], rid, text)
redis.call('HSET', KEYS[4], rid, ARGV[9] .. '|0|' .. int(now + lease) .. '|0|0|')
table.insert(out, 1, 'ok')
out[#out + 1] = now
out[#out + 1] = ceiling
out[#out + 1] = cost
out[#out + 1] = text
return out
