-- What the scripts of webhooks share; put after common.lua where a script says "-- needs webhooks".
-- ARGV: prefix, and what the script itself takes.
--
-- Keys, all below the prefix:
--   webhook:{id}                  hash, an endpoint: tenant, url, host, events (with spaces),
--                                 description, state ('enabled' | 'disabled'), reason, secrets
--                                 (JSON), revision, failures (attempts in a row), failing (since,
--                                 ms), disabled, succeeded, created, updated (ms)
--   webhooks, webhooks:disabled   sorted set of endpoints by creation; set of the disabled ones
--   tenant:{t}:webhooks           sorted set of the tenant's endpoints by creation
--   tenant:{t}:webhooks:{type}    set of those that want to be told of an event
--   tenant:{t}:webhook-secrets    JSON, secrets that messages to jobs' own webhooks are signed with
--   job:{id}:told                 there while no more progress of the job is to be told
--   delivery:{id}                 hash: tenant, endpoint ('' for a job's own webhook), job, type,
--                                 url (of a job's own webhook), host, message, state ('pending' |
--                                 'delivered' | 'failed'), failure, tries (of this round), attempts
--                                 (of all), log (a JSON object per line), nonce and done (of the
--                                 latest and of the latest finished claim), order, due, created,
--                                 ended (ms)
--   message:{id}                  hash: body (JSON), uses (deliveries that send it; goes with the
--                                 last of them)
--   tenant:{t}:deliveries, webhook:{id}:deliveries, each also with :{state}
--                                 sorted sets of ids by order of creation
--   job:{id}:deliveries           likewise
--   deliveries:pending            pending ids by when they began to wait, ms: when they were made,
--                                 or when somebody wanted them sent again
--   deliveries:ended              delivered and failed ids by when they ended, ms
--   deliveries:due:{t}:{host}     pending ids of a tenant to a host by when they are due, ms; one
--                                 that is being sent is due again when its claim runs out
--   deliveries:hosts:{t}          hosts by when the tenant's first delivery to them is due, ms
--   deliveries:tenants            tenants by when their first delivery is due, ms

local TYPES = {
  'job.queued', 'job.running', 'job.progress', 'job.succeeded', 'job.failed', 'job.cancelled',
}

local function hook(id)
  return P .. 'webhook:' .. id
end

-- Lists an endpoint, or with an empty text of events no longer, under the events it wants.
local function list_under(id, tenant, events, enabled)
  local wanted = {}
  for each in string.gmatch(events, '%S+') do wanted[each] = true end
  -- Progress is not kept for an endpoint that is disabled: it is worth nothing later.
  if not enabled then wanted['job.progress'] = nil end
  for _, each in ipairs(TYPES) do
    local key = P .. 'tenant:' .. tenant .. ':webhooks:' .. each
    redis.call(wanted[each] and 'SADD' or 'SREM', key, id)
  end
end

local function disable(id, reason)
  local seen = redis.call('HMGET', hook(id), 'tenant', 'events', 'state')
  if seen[3] ~= 'enabled' then return false end
  redis.call('HSET', hook(id), 'state', 'disabled', 'reason', reason,
    'disabled', int(now), 'updated', int(now))
  redis.call('SADD', P .. 'webhooks:disabled', id)
  list_under(id, seen[1], seen[2], false)
  count('webhooks_disabled{reason="' .. reason .. '"}')
  return true
end

local DELIVERY = {
  'tenant', 'endpoint', 'job', 'type', 'url', 'host', 'state', 'tries', 'attempts', 'log', 'nonce',
  'done', 'order', 'created', 'message',
}

-- Returns a delivery's fields, or nil without such a one.
local function delivery_of(id)
  local values = redis.call('HMGET', P .. 'delivery:' .. id, unpack(DELIVERY))
  if not values[1] then return nil end
  local d = {id = id}
  for i, name in ipairs(DELIVERY) do d[name] = values[i] or '' end
  return d
end

local function line_of(tenant, host)
  return P .. 'deliveries:due:' .. tenant .. ':' .. host
end

-- Lists a name by the score of the first entry of a sorted set, or no longer without one.
local function list_by_first(list, name, set)
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', list, first[2], name)
  else
    redis.call('ZREM', list, name)
  end
end

-- Keeps a tenant's host, and the tenant, listed by when their first delivery is due.
local function call_host(tenant, host)
  local hosts = P .. 'deliveries:hosts:' .. tenant
  list_by_first(hosts, host, line_of(tenant, host))
  list_by_first(P .. 'deliveries:tenants', tenant, hosts)
end

local function line_up(d, due)
  redis.call('ZADD', line_of(d.tenant, d.host), int(due), d.id)
  redis.call('HSET', P .. 'delivery:' .. d.id, 'due', int(due))
  call_host(d.tenant, d.host)
end

local function leave_line(d)
  redis.call('ZREM', line_of(d.tenant, d.host), d.id)
  call_host(d.tenant, d.host)
end

local function indexes(d)
  local keys = {P .. 'tenant:' .. d.tenant .. ':deliveries'}
  if d.endpoint ~= '' and redis.call('EXISTS', hook(d.endpoint)) == 1 then
    keys[2] = hook(d.endpoint) .. ':deliveries'
  end
  return keys
end

-- Removes a delivery with everything that names it.
local function forget(id)
  local d = delivery_of(id)
  if not d then return end
  for _, key in ipairs(indexes(d)) do
    redis.call('ZREM', key, id)
    redis.call('ZREM', key .. ':' .. d.state, id)
  end
  if d.job ~= '' then redis.call('ZREM', P .. 'job:' .. d.job .. ':deliveries', id) end
  redis.call('ZREM', P .. 'deliveries:pending', id)
  redis.call('ZREM', P .. 'deliveries:ended', id)
  leave_line(d)
  redis.call('DEL', P .. 'delivery:' .. id)
  local message = P .. 'message:' .. d.message
  if redis.call('HINCRBY', message, 'uses', -1) <= 0 then redis.call('DEL', message) end
end

-- Removes the oldest of a list of ended deliveries that is longer than it may be.
local function trim(list, most)
  local excess = math.min(redis.call('ZCARD', list) - most, 100)
  if excess <= 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', list, 0, excess - 1)) do forget(id) end
end

-- Brings a delivery from its state ('' for a new one) into another. Of those that ended the oldest
-- may go for it, this one too.
local function file(d, to, failure)
  for _, key in ipairs(indexes(d)) do
    if d.state ~= '' and d.state ~= to then redis.call('ZREM', key .. ':' .. d.state, d.id) end
    redis.call('ZADD', key, d.order, d.id)
    redis.call('ZADD', key .. ':' .. to, d.order, d.id)
  end
  local ended = ''
  if to == 'pending' then
    redis.call('ZADD', P .. 'deliveries:pending', int(now), d.id)
    redis.call('ZREM', P .. 'deliveries:ended', d.id)
  else
    ended = int(now)
    redis.call('ZREM', P .. 'deliveries:pending', d.id)
    redis.call('ZADD', P .. 'deliveries:ended', ended, d.id)
    leave_line(d)
    count('webhook_deliveries{outcome="' .. to .. '"}')
  end
  redis.call('HSET', P .. 'delivery:' .. d.id,
    'state', to, 'failure', failure or '', 'ended', ended)
  if to ~= 'pending' then
    local keys = indexes(d)
    trim(keys[1] .. ':' .. to, LIMITS.webhook_tenant_kept)
    if keys[2] then trim(keys[2] .. ':' .. to, LIMITS.webhook_endpoint_kept) end
  end
end

-- Makes a delivery that does not exist yet, due at once. `d`: id, tenant, endpoint, job, type, url,
-- host, message, body. With `failure` it has failed already.
local function deliver(d, failure)
  if redis.call('EXISTS', P .. 'delivery:' .. d.id) == 1 then return false end
  local last = tonumber(redis.call('GET', P .. 'deliveries:last_order') or '0')
  d.order = int(math.max(now_us, last + 1))
  redis.call('SET', P .. 'deliveries:last_order', d.order)
  d['state'] = '' -- of the delivery, not of a job
  d.created = int(now)
  redis.call('HSET', P .. 'delivery:' .. d.id, 'tenant', d.tenant, 'endpoint', d.endpoint,
    'job', d.job, 'type', d.type, 'url', d.url, 'host', d.host, 'message', d.message,
    'tries', '0', 'attempts', '0', 'log', '', 'nonce', '', 'done', '', 'order', d.order,
    'created', d.created, 'due', d.created)
  redis.call('HSETNX', P .. 'message:' .. d.message, 'body', d.body)
  redis.call('HINCRBY', P .. 'message:' .. d.message, 'uses', 1)
  if d.job ~= '' then
    redis.call('ZADD', P .. 'job:' .. d.job .. ':deliveries', d.order, d.id)
  end
  file(d, failure and 'failed' or 'pending', failure)
  if not failure then line_up(d, now) end
  return true
end

-- Has a delivery sent again, from the beginning of the schedule.
local function send_again(d)
  redis.call('HSET', P .. 'delivery:' .. d.id, 'tries', '0', 'nonce', '')
  file(d, 'pending')
  line_up(d, now)
  count('webhook_replays')
end
