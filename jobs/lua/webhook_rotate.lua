-- needs webhooks
-- Puts a new signing secret in force; those before sign too for a while.
-- ARGV: prefix, endpoint ('' for the tenant's own secrets), tenant, secret, overlap in ms,
--       most secrets at one time
-- Returns {'ok', secrets (JSON, newest first)} or {'missing'}. A repeat is answered alike.
local id, tenant, secret = ARGV[2], ARGV[3], ARGV[4]
local ends, most = now + tonumber(ARGV[5]), tonumber(ARGV[6])
local mine = P .. 'tenant:' .. tenant .. ':webhook-secrets'
local text
if id ~= '' then
  text = redis.call('HGET', hook(id), 'secrets')
  if not text then return {'missing'} end
else
  text = redis.call('GET', mine)
end
local known = text and cjson.decode(text) or {}
if known[1] and known[1].secret == secret then return {'ok', text} end
local kept = {{secret = secret, created = int(now)}}
for _, each in ipairs(known) do
  local stays = math.min(tonumber(each.expires or '') or ends, ends)
  if stays > now and #kept < most then
    kept[#kept + 1] = {secret = each.secret, created = each.created, expires = int(stays)}
  end
end
text = cjson.encode(kept)
if id ~= '' then
  redis.call('HSET', hook(id), 'secrets', text, 'updated', int(now))
  redis.call('HINCRBY', hook(id), 'revision', 1)
else
  redis.call('SET', mine, text)
end
return {'ok', text}
