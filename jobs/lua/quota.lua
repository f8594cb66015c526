-- Takes from a quota over a sliding window: the count of the running window, plus the share of the
-- last one that the sliding window still covers.
-- ARGV: prefix, name, subject, cost, limit, window in ms
-- Returns {allowed 1 or 0, remaining, reset ms, retry ms}
local key = P .. 'quota:' .. ARGV[2] .. ':' .. ARGV[3]
local cost, limit, window = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local seen = redis.call('HMGET', key, 'window', 'current', 'previous')
local index = math.floor(now / window)
local elapsed = now - index * window
local current, previous = 0, 0
if seen[1] then
  local age = index - tonumber(seen[1])
  if age == 0 then
    current, previous = tonumber(seen[2]), tonumber(seen[3])
  elseif age == 1 then
    previous = tonumber(seen[2])
  end
end
local used = current + previous * (1 - elapsed / window)
local allowed = used + cost <= limit
if allowed then
  current = current + cost
  used = used + cost
  redis.call('HSET', key,
    'window', int(index), 'current', int(current), 'previous', int(previous))
  redis.call('PEXPIRE', key, int(2 * window))
end

local retry = 0
if not allowed then
  if cost > limit then
    retry = 2 * window
  elseif current + cost <= limit then
    retry = window * (1 - (limit - current - cost) / previous) - elapsed
  else
    retry = window - elapsed + window * math.max(0, 1 - (limit - cost) / current)
  end
  count('quota_refusals{name="' .. ARGV[2] .. '"}')
end
local reset = 0
if current > 0 then
  reset = 2 * window - elapsed
elseif previous > 0 then
  reset = window - elapsed
end
return {
  allowed and 1 or 0, int(math.max(0, math.floor(limit - used))), int(math.ceil(reset)),
  int(math.ceil(retry)),
}
