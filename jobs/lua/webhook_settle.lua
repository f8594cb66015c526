-- needs webhooks
-- Notes what became of an attempt.
-- ARGV: prefix, id, nonce, attempt (JSON object, one line), verdict ('delivered', 'retry', 'failed'
--       or 'gone'), failure, ms until the next attempt, host that it was sent to,
--       ms of failing and number of failures after which an endpoint is disabled,
--       counters (JSON object, name -> amount)
-- Returns {'ok', state, why the endpoint was disabled or ''} or {'stale'}. A repeat is answered
-- alike but for the reason.
local id, nonce, verdict = ARGV[2], ARGV[3], ARGV[5]
local d = delivery_of(id)
if not d or nonce == '' then return {'stale'} end
if d.done == nonce then return {'ok', d.state, ''} end
if d.state ~= 'pending' or d.nonce ~= nonce then
  count('stale_writes_refused{write="delivery"}')
  return {'stale'}
end

local lines = d.log .. ARGV[4] .. '\n'
-- What is replayed again and again must not grow for ever: the oldest lines go.
while #lines > 8192 do lines = string.gsub(lines, '^[^\n]*\n', '', 1) end
redis.call('HSET', P .. 'delivery:' .. id, 'log', lines, 'done', nonce, 'nonce', '',
  'tries', int(d.tries + 1), 'attempts', int(d.attempts + 1))
for counter, amount in pairs(cjson.decode(ARGV[11])) do
  redis.call('HINCRBYFLOAT', P .. 'counters', counter, tostring(amount))
end

local reason = ''
if d.endpoint ~= '' and redis.call('EXISTS', hook(d.endpoint)) == 1 then
  if verdict == 'delivered' then
    redis.call('HSET', hook(d.endpoint), 'failures', '0', 'failing', '', 'succeeded', int(now))
  else
    local failures = redis.call('HINCRBY', hook(d.endpoint), 'failures', 1)
    local since = tonumber(redis.call('HGET', hook(d.endpoint), 'failing') or '')
    if not since then
      since = now
      redis.call('HSET', hook(d.endpoint), 'failing', int(now))
    end
    if verdict == 'gone' then
      reason = 'gone'
    elseif now - since >= tonumber(ARGV[9]) and failures >= tonumber(ARGV[10]) then
      reason = 'failing'
    end
    if reason ~= '' and not disable(d.endpoint, reason) then reason = '' end
  end
end

if verdict == 'retry' then
  if ARGV[8] ~= d.host then
    leave_line(d)
    d.host = ARGV[8]
    redis.call('HSET', P .. 'delivery:' .. id, 'host', d.host)
  end
  redis.call('HSET', P .. 'delivery:' .. id, 'failure', ARGV[6])
  line_up(d, now + tonumber(ARGV[7]))
  return {'ok', 'pending', reason}
end
local ended = verdict == 'delivered' and 'delivered' or 'failed'
file(d, ended, verdict ~= 'delivered' and ARGV[6] or '')
return {'ok', ended, reason}
