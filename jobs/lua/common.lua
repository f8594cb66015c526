-- Put before every script. ARGV[1] is always the key prefix; the scripts' own arguments follow.
-- The loader (jobs/scripts.py) puts before this file:
--   TRANSITIONS  the table of jobs/lifecycle.py
--   LIMITS       numbers of the settings: lease_ms, max_attempts, events_per_job, ...
--
-- Keys, all below the prefix (one Redis, no cluster: keys are made here, not declared):
--   job:{id}                    hash, the record
--   job:{id}:events             stream of this job's events, progress included
--   tenant:{t}:events           stream of the tenant's transitions
--   outbox                      stream of what webhooks must be told
--   jobs, jobs:{state}          sorted sets of ids by order of creation; below tenant:{t}: too
--   tenant:{t}:batch:{b}        sorted set of ids by order of creation
--   tenant:{t}:dedup            hash, digest of the work -> id
--   queue:{q}, running:{q}      sorted set by (priority, age); set of running ids
--   queues, paused              sets of queue names
--   leases                      running ids by end of lease, ms
--   unpublished                 queued ids that need a wake-up, by when it is due, ms
--   published                   queued ids with a wake-up sent, by when it was sent, ms
--   finished                    ended ids by when they ended, ms
--   unjournalled                ids whose last change the journal does not know yet, by time, us
--   trash                       ids being deleted, by time, ms
--   counters                    hash, name -> number
--
-- Record fields, besides what the client gave: state, attempt, strikes, version, order (unique
-- microsecond of creation), nonce and worker and lease_until (of the latest claim), cancel and
-- finish ('1' if asked), last (name of the worker's call or transition that set the state),
-- progress, result, report, failure (JSON), attempts (a JSON object per line), created, queued,
-- started, finished, updated, published, not_before (ms), submission, body, dedup, deleted.

local P = ARGV[1] .. ':'

local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = math.floor(now_us / 1000)

-- A submitter publishes its own job within this time, ms.
local PATIENCE = 5000

-- Lua writes large numbers with an exponent unless told otherwise.
local function int(number)
  return string.format('%.0f', number)
end

local function count(name, by)
  redis.call('HINCRBY', P .. 'counters', name, by or 1)
end

local LOADED = {
  'id', 'tenant', 'state', 'queue', 'priority', 'attempt', 'strikes', 'order', 'version', 'nonce',
  'worker', 'webhook', 'batch', 'cancel', 'finish', 'queued', 'not_before', 'deleted', 'dedup',
  'body', 'attempts', 'submission', 'last',
}

-- Returns the fields that the scripts decide on, absent ones as '', or nil without such a job.
local function load(id)
  local values = redis.call('HMGET', P .. 'job:' .. id, unpack(LOADED))
  if not values[3] then return nil end
  local job = {}
  for i, name in ipairs(LOADED) do job[name] = values[i] or '' end
  job.attempt = tonumber(job.attempt)
  job.strikes = tonumber(job.strikes)
  job.version = tonumber(job.version)
  return job
end

-- True if the caller's token is the running attempt's.
local function holds(job, attempt, nonce)
  return job ~= nil and job.deleted == '' and job.state == 'running'
    and job.attempt == tonumber(attempt) and job.nonce == nonce
end

-- True if this very attempt already made the asked move: a repeat after a lost reply.
local function repeats(job, attempt, nonce, name)
  return job ~= nil and job.deleted == '' and job.state ~= 'running' and job.last == name
    and job.attempt == tonumber(attempt) and job.nonce == nonce
end

local function refuse_stale(job, write)
  count('stale_writes_refused{write="' .. write .. '"}')
  if job == nil or job.deleted ~= '' then return {'stale', 'the job is gone'} end
  return {'stale', 'the job is ' .. job.state .. ' in attempt ' .. job.attempt}
end

-- Returns {status, hash as a flat list}: the answer of every script that ends with a record.
local function answer(status, id)
  return {status, redis.call('HGETALL', P .. 'job:' .. id)}
end

local function emit(job, event, data, tenant_too)
  local entry = {
    'type', event, 'job', job.id, 'tenant', job.tenant, 'state', job.state,
    'attempt', int(job.attempt), 'version', int(job.version), 'at', int(now), 'data', data or '{}',
  }
  redis.call('XADD', P .. 'job:' .. job.id .. ':events',
    'MAXLEN', '~', LIMITS.events_per_job, '*', unpack(entry))
  if tenant_too then
    redis.call('XADD', P .. 'tenant:' .. job.tenant .. ':events',
      'MAXLEN', '~', LIMITS.events_per_tenant, '*', unpack(entry))
  end
  return entry
end

-- Writes fields of a job without moving it, and tells about it.
local function touch(job, sets, event, data, tenant_too)
  job.version = job.version + 1
  sets.version = int(job.version)
  sets.updated = int(now)
  local flat = {}
  for name, value in pairs(sets) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('HSET', P .. 'job:' .. job.id, unpack(flat))
  if event then return emit(job, event, data, tenant_too) end
end

-- The one place that changes a state. `sets` are further fields to write, `data` the event's own
-- JSON. Everything is checked before the first write: a script that fails half-way is not undone.
local function move(job, name, sets, data)
  local rule = TRANSITIONS[name]
  if not rule then error('no transition ' .. name) end
  if (rule.from or '') ~= job.state then
    error(name .. ' leads from ' .. tostring(rule.from) .. ', not from ' .. job.state)
  end
  local tenant = P .. 'tenant:' .. job.tenant .. ':'

  if rule.from then
    redis.call('ZREM', P .. 'jobs:' .. rule.from, job.id)
    redis.call('ZREM', tenant .. 'jobs:' .. rule.from, job.id)
  end
  redis.call('ZADD', P .. 'jobs:' .. rule.to, job.order, job.id)
  redis.call('ZADD', tenant .. 'jobs:' .. rule.to, job.order, job.id)

  if rule.from == 'queued' then
    redis.call('ZREM', P .. 'queue:' .. job.queue, job.id)
    redis.call('ZREM', P .. 'unpublished', job.id)
    redis.call('ZREM', P .. 'published', job.id)
  elseif rule.from == 'running' then
    redis.call('ZREM', P .. 'leases', job.id)
    redis.call('SREM', P .. 'running:' .. job.queue, job.id)
  elseif rule.from then
    redis.call('ZREM', P .. 'finished', job.id)
  end

  if rule.to == 'queued' then
    -- A job that comes back keeps its place: `queued` is when a person last asked for it.
    job.queued = sets.queued or job.queued
    local place = (9 - tonumber(job.priority)) * 1e13 + tonumber(job.queued)
    -- Who submits or retries a job sends its wake-up; for one that comes back only the reaper does.
    local grace = rule.from == 'running' and 0 or PATIENCE
    local due = tonumber(sets.not_before or '') or now + grace
    redis.call('SADD', P .. 'queues', job.queue)
    redis.call('ZADD', P .. 'queue:' .. job.queue, int(place), job.id)
    redis.call('ZADD', P .. 'unpublished', int(due), job.id)
    sets.published = ''
    sets.not_before = sets.not_before or ''
  elseif rule.to == 'running' then
    redis.call('ZADD', P .. 'leases', sets.lease_until, job.id)
    redis.call('SADD', P .. 'running:' .. job.queue, job.id)
  else
    redis.call('ZADD', P .. 'finished', int(now), job.id)
    sets.finished = int(now)
  end

  local line
  if rule.to == 'running' then
    line = {n = int(sets.attempt), worker = sets.worker, at = int(now)}
  elseif rule.finish then
    line = {n = int(job.attempt), ['end'] = rule.finish, at = int(now)}
  end
  if line then
    local lines = job.attempts .. cjson.encode(line) .. '\n'
    -- A job that is released for ever must not grow for ever: the oldest lines go.
    while #lines > 16384 do lines = string.gsub(lines, '^[^\n]*\n', '', 1) end
    sets.attempts = lines
  end

  job.state = rule.to
  job.attempt = tonumber(sets.attempt or job.attempt)
  sets.state = rule.to
  sets.last = sets.last or name
  local entry = touch(job, sets, rule.event, data, true)
  count('transitions{from="' .. (rule.from or 'none') .. '",to="' .. rule.to .. '"}')
  if rule.journal then redis.call('ZADD', P .. 'unjournalled', int(now_us), job.id) end
  if rule.webhook
    and (job.webhook ~= '' or redis.call('EXISTS', tenant .. 'webhooks') == 1) then
    redis.call('XADD', P .. 'outbox', '*', 'webhook', job.webhook, unpack(entry))
  end
end

-- Ends a running attempt that did not end by itself. Returns what became of the job.
local function give_up(job, reason, name, strike, delay_ms)
  local strikes = job.strikes + (strike and 1 or 0)
  -- `last` is what was asked, not what became of it: a repeated release is answered alike, and
  -- nothing that the holder of a lost lease still sends can be taken for a repeat.
  local sets = {strikes = int(strikes), progress = '', last = name}
  if job.cancel == '1' then
    move(job, 'obey_cancel', sets)
    return 'cancelled'
  end
  if strikes >= LIMITS.max_attempts then
    sets.failure = cjson.encode({
      code = 'poisoned',
      message = 'given up after ' .. int(strikes) .. ' attempts that did not come to an end',
      detail = 'last: attempt ' .. int(job.attempt) .. ' by ' .. job.worker .. ': ' .. reason,
    })
    move(job, 'poison', sets, sets.failure)
    count('jobs_poisoned')
    return 'poisoned'
  end
  if delay_ms > 0 then sets.not_before = int(now + delay_ms) end
  move(job, name, sets, cjson.encode({reason = reason, strikes = strikes}))
  return 'requeued'
end
