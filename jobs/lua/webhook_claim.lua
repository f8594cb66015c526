-- needs webhooks
-- Gives due deliveries to a sender, for a while: if it is not heard of again they are due again.
-- ARGV: prefix, nonce, most deliveries, most per host, claim in ms, what the sender is busy with
--       (JSON object: host -> deliveries)
-- Returns a flat list: id, url, secrets (JSON), hash as a flat list, id, ...
local nonce, most, per_host = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local busy = cjson.decode(ARGV[6])
local given, taken = {}, 0

-- Returns url and secrets, or nil and why nothing can be sent.
local function target(d)
  if d.endpoint == '' then
    return d.url, redis.call('GET', P .. 'tenant:' .. d.tenant .. ':webhook-secrets') or '[]'
  end
  local seen = redis.call('HMGET', hook(d.endpoint), 'url', 'secrets', 'state')
  if not seen[1] then return nil, 'endpoint_deleted' end
  if seen[3] ~= 'enabled' then return nil, 'endpoint_disabled' end
  return seen[1], seen[2]
end

-- Those that wait longest first; one host with many does not keep the others waiting.
local hosts = redis.call('ZRANGEBYSCORE', P .. 'deliveries:hosts', '-inf', int(now),
  'LIMIT', 0, most + 1000)
for _, host in ipairs(hosts) do
  local line = P .. 'deliveries:due:' .. host
  local room = math.min(per_host - (busy[host] or 0), most - taken)
  local looks = 0
  while room > 0 and looks < 100 do
    looks = looks + 1
    local id = redis.call('ZRANGEBYSCORE', line, '-inf', int(now), 'LIMIT', 0, 1)[1]
    if not id then break end
    local d = delivery_of(id)
    if not d or d.state ~= 'pending' then
      redis.call('ZREM', line, id)
    else
      local url, secrets = target(d)
      if url then
        redis.call('HSET', P .. 'delivery:' .. id, 'nonce', nonce)
        line_up(d, now + tonumber(ARGV[5]))
        given[#given + 1] = id
        given[#given + 1] = url
        given[#given + 1] = secrets
        given[#given + 1] = redis.call('HGETALL', P .. 'delivery:' .. id)
        room, taken = room - 1, taken + 1
      else
        file(d, 'failed', secrets)
      end
    end
  end
  call_host(host)
end
return given
