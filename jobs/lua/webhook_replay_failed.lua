-- needs webhooks
-- Has failed deliveries of an endpoint sent again, oldest first; progress is worth nothing later.
-- ARGV: prefix, endpoint, made at or after (order), most at once
-- Returns {'ok', how many, order to go on after or ''}, {'missing'} or {'disabled'}
local id, most = ARGV[2], tonumber(ARGV[4])
local enabled = redis.call('HGET', hook(id), 'state')
if not enabled then return {'missing'} end
if enabled ~= 'enabled' then return {'disabled'} end
local rows = redis.call('ZRANGEBYSCORE', hook(id) .. ':deliveries:failed', ARGV[3], '+inf',
  'WITHSCORES', 'LIMIT', 0, most)
local again = 0
for i = 1, #rows, 2 do
  local d = delivery_of(rows[i])
  if d and d.type ~= 'job.progress' then
    send_again(d)
    again = again + 1
  end
end
return {'ok', again, #rows == 2 * most and int(tonumber(rows[#rows]) + 1) or ''}
