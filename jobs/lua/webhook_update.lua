-- needs webhooks
-- Changes an endpoint. ARGV: prefix, id, fields (JSON object of text; with state 'enabled' its
-- failures are forgotten)
-- Returns {'ok', hash} or {'missing'}
local id, fields = ARGV[2], cjson.decode(ARGV[3])
local before = redis.call('HMGET', hook(id), 'tenant', 'state')
if not before[1] then return {'missing'} end
local wanted = fields['state']
if wanted == 'enabled' then
  fields.reason, fields.disabled, fields.failing, fields.failures = '', '', '', '0'
  redis.call('SREM', P .. 'webhooks:disabled', id)
elseif wanted == 'disabled' then
  if before[2] == 'enabled' then
    fields.disabled = int(now)
  else
    fields.reason = nil -- why it is disabled already says more
  end
  redis.call('SADD', P .. 'webhooks:disabled', id)
end
fields.updated = int(now)
local flat = {}
for name, value in pairs(fields) do
  flat[#flat + 1] = name
  flat[#flat + 1] = value
end
redis.call('HSET', hook(id), unpack(flat))
redis.call('HINCRBY', hook(id), 'revision', 1)
local after = redis.call('HMGET', hook(id), 'events', 'state')
list_under(id, before[1], after[1], after[2] == 'enabled')
return {'ok', redis.call('HGETALL', hook(id))}
