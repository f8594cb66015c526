-- needs webhooks
-- Makes an endpoint. ARGV: prefix, id, tenant, fields (JSON object of text), most endpoints of the
-- tenant (0 = any number)
-- Returns {'ok', hash} or {'quota', name, limit, used}. A repeat is answered alike.
local id, tenant, most = ARGV[2], ARGV[3], tonumber(ARGV[5])
if redis.call('EXISTS', hook(id)) == 1 then return {'ok', redis.call('HGETALL', hook(id))} end
local mine = P .. 'tenant:' .. tenant .. ':webhooks'
local used = redis.call('ZCARD', mine)
if most > 0 and used >= most then return {'quota', 'webhooks', most, used} end
local fields = cjson.decode(ARGV[4])
fields.id, fields.tenant = id, tenant
fields.created = fields.created or int(now)
fields.updated = fields.updated or int(now)
local flat = {}
for name, value in pairs(fields) do
  flat[#flat + 1] = name
  flat[#flat + 1] = value
end
redis.call('HSET', hook(id), unpack(flat))
redis.call('ZADD', P .. 'webhooks', fields.created, id)
redis.call('ZADD', mine, fields.created, id)
if fields['state'] == 'disabled' then redis.call('SADD', P .. 'webhooks:disabled', id) end
list_under(id, tenant, fields.events, fields['state'] == 'enabled')
return {'ok', redis.call('HGETALL', hook(id))}
