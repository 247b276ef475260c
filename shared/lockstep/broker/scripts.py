"""What must happen in one step inside Redis, as Lua scripts. Each says what it takes and returns.

Some name keys that they only compute; a cluster would not allow that, and is refused at the start. When the server has no
memory left, it stops a script at a command that may need some, unless the script has begun to write: those that must work
then, or nothing could ever be freed, begin with a command that needs none.
"""

from __future__ import annotations

OWN = """
-- Says who owns partitions. A newer owner stays: the caller may have been suspended on its way here.
-- KEYS: epochs. ARGV: each partition's id and epoch
redis.call('PERSIST', KEYS[1])
for arg = 1, #ARGV, 2 do
    local stored = redis.call('HGET', KEYS[1], ARGV[arg])
    if not stored or tonumber(stored) < tonumber(ARGV[arg + 1]) then redis.call('HSET', KEYS[1], ARGV[arg], ARGV[arg + 1]) end
end
"""

ENQUEUE = """
-- Puts tasks at the end of a queue, as many as there is room for, in jobs of at most `chunk` tasks.
-- KEYS: queue list, set of queues, depth, bell, epochs, refused, marker
-- ARGV: job prefix, queue key, queue name, limit, chunk, job id base, time (ISO), job TTL, stream to wake, head and tail of
--       data, number of the tasks' partitions, their ids, their epochs, the marker that the caller knows, then for each task:
--       JSON, identity, "1" if it travels alone
-- Returns the ids of the jobs, each ending in -<number of its tasks>; nil if a partition has another owner by now, or the
-- server has lost its memory, and with it the owners.
local n = tonumber(ARGV[12])
if redis.call('GET', KEYS[7]) ~= ARGV[13 + 2 * n] then return nil end
local epochs = redis.call('HMGET', KEYS[5], unpack(ARGV, 13, 12 + n))
for i = 1, n do
    local mine = ARGV[12 + n + i]
    if epochs[i] and tonumber(epochs[i]) > tonumber(mine) then return nil end
    if epochs[i] ~= mine then redis.call('HSET', KEYS[5], ARGV[12 + i], mine) end
end
local arg = 14 + 2 * n
local prefix, chunk, base, now = ARGV[1], tonumber(ARGV[5]), ARGV[6], ARGV[7]
local room = tonumber(ARGV[4]) - tonumber(redis.call('GET', KEYS[3]) or '0')
local jobs, tasks, names, taken = {}, {}, {}, 0
local function close()
    if #tasks == 0 then return end
    local id = base .. '-' .. #jobs .. '-' .. #tasks
    redis.call('HSET', prefix .. id, 'data', ARGV[10] .. table.concat(tasks, ',') .. ARGV[11],
        'tasks', '[' .. table.concat(names, ',') .. ']', 'origin', ARGV[3], 'status', 'queued', 'created_at', now,
        'enqueued_at', now, 'description', 'lockstep: ' .. #tasks .. ' task(s)')
    redis.call('EXPIRE', prefix .. id, ARGV[8])
    redis.call('RPUSH', KEYS[1], id)
    jobs[#jobs + 1], tasks, names = id, {}, {}
end
while arg <= #ARGV and taken < room do
    local alone = ARGV[arg + 2] == '1'
    if alone or #tasks >= chunk then close() end
    tasks[#tasks + 1], names[#names + 1] = ARGV[arg], ARGV[arg + 1]
    if alone then close() end
    taken, arg = taken + 1, arg + 3
end
close()
if #jobs > 0 then
    redis.call('SADD', KEYS[2], ARGV[2])
    redis.call('INCRBY', KEYS[3], taken)
    -- One is enough: whoever takes some and leaves some rings for the next.
    if redis.call('LLEN', KEYS[4]) == 0 then redis.call('RPUSH', KEYS[4], '1') end
end
if arg <= #ARGV then redis.call('SADD', KEYS[6], ARGV[9]) end
return jobs
"""

CLAIM = """
-- Takes jobs out of the queues, one queue after the other, until it has as many as the worker has room for.
-- KEYS: suspended, claims, beats
-- ARGV: job prefix, queue prefix, depth prefix, bell prefix, refused prefix, running prefix, room, claims TTL, execution,
--       name of the worker, then the queues
-- Returns for each job its id, its queue and its data.
if redis.call('EXISTS', KEYS[1]) == 1 then return {} end
local room, claimed = tonumber(ARGV[7]), {}
for arg = 11, #ARGV do
    local name = ARGV[arg]
    local queue, popped = ARGV[2] .. name, false
    while room > 0 do
        local id = redis.call('LPOP', queue)
        if not id then break end
        popped = true
        local tasks = tonumber(string.match(id, '%-(%d+)$') or '1')
        if redis.call('DECRBY', ARGV[3] .. name, tasks) < 0 then redis.call('SET', ARGV[3] .. name, 0) end
        local job = ARGV[1] .. id
        local fields = redis.pcall('HMGET', job, 'data', 'tasks')
        redis.call('DEL', job)
        if not fields['err'] and fields[1] then
            redis.call('HSET', KEYS[2], id, '[' .. cjson.encode(name) .. ',' .. (fields[2] or '[]') .. ']')
            redis.call('ZADD', ARGV[6] .. name, '+inf', id .. ARGV[9])
            claimed[#claimed + 1] = {id, name, fields[1]}
            room = room - 1
        end
    end
    if popped then
        -- Somebody else may take the rest; and who was refused may offer again.
        local bell = ARGV[4] .. name
        if redis.call('LLEN', queue) > 0 and redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
        local refused = ARGV[5] .. name
        for _, stream in ipairs(redis.call('SMEMBERS', refused)) do redis.call('XADD', stream, '*', 'wake', '') end
        redis.call('DEL', refused)
    end
end
if #claimed > 0 then
    redis.call('EXPIRE', KEYS[2], ARGV[8])
    -- Who claims before the first beat is alive, too.
    redis.call('ZADD', KEYS[3], 'NX', redis.call('TIME')[1] * 1000, ARGV[10])
end
return claimed
"""

ACKNOWLEDGE = """
-- Deletes entries of result streams whose partitions still belong to the caller.
-- KEYS: epochs. ARGV: results prefix, then for each partition: its id, epoch, number of entries, the entries' ids
local arg = 2
while arg <= #ARGV do
    local partition, epoch, n = ARGV[arg], tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    local stored = redis.call('HGET', KEYS[1], partition)
    if not stored or tonumber(stored) <= epoch then
        -- In parts: Lua's stack is bounded, and after an outage there may be very many.
        for first = arg + 3, arg + 2 + n, 1000 do
            redis.call('XDEL', ARGV[1] .. partition, unpack(ARGV, first, math.min(first + 999, arg + 2 + n)))
        end
    end
    arg = arg + 3 + n
end
"""

PERMIT = """
-- Gives items permits of a node, in order, as long as there are some; one that has one gets it again.
-- KEYS: permits, waiting. ARGV: limit, milliseconds that a permit holds, stream to wake when one is given back, then the items
-- Returns for each 1 or 0.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local held, verdicts = redis.call('ZCARD', KEYS[1]), {}
for arg = 4, #ARGV do
    local has = redis.call('ZSCORE', KEYS[1], ARGV[arg])
    if has or held < tonumber(ARGV[1]) then
        redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[arg])
        if not has then held = held + 1 end
        verdicts[#verdicts + 1] = 1
    else
        redis.call('SADD', KEYS[2], ARGV[3])
        redis.call('PEXPIRE', KEYS[2], ARGV[2])
        verdicts[#verdicts + 1] = 0
    end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return verdicts
"""

GIVE_BACK = """
-- Gives permits of a node back, and wakes those who wait for one. KEYS: permits, waiting. ARGV: the items
if redis.call('ZREM', KEYS[1], unpack(ARGV)) == 0 then return end
for _, stream in ipairs(redis.call('SMEMBERS', KEYS[2])) do redis.call('XADD', stream, '*', 'wake', '') end
redis.call('DEL', KEYS[2])
"""

RENEW = """
-- Lets permits of a node hold on. KEYS: permits. ARGV: milliseconds, then the items
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for arg = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[arg]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""

CANCEL = """
-- Says that nothing more of a run is wanted, unless its partition has another owner by now.
-- KEYS: cancelled, epochs. ARGV: run, partition, epoch, milliseconds to keep it
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[4])
local stored = redis.call('HGET', KEYS[2], ARGV[2])
if stored and tonumber(stored) > tonumber(ARGV[3]) then return end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
"""

CANCELLED = """
-- The runs that were cancelled after the moment `since`, oldest first.
-- KEYS: cancelled. ARGV: since, how many at most
-- Returns the server's time in milliseconds, then runs and moments in turn.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
return {now, unpack(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2]))}
"""

ANNOUNCE = """
-- Wakes the owner of a partition, who may not exist: then its stream must not grow. KEYS: stream. ARGV: bound
if redis.call('XLEN', KEYS[1]) < tonumber(ARGV[1]) then redis.call('XADD', KEYS[1], '*', 'wake', '') end
"""

BEAT = """
-- Says that a worker is alive.
-- KEYS: beats, what the worker says of itself, its claims, RQ's hash of it, marker
-- ARGV: name, description, TTL, new marker, time (ISO), RQ's TTL
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
if redis.call('EXISTS', KEYS[4]) == 1 then
    redis.call('HSET', KEYS[4], 'last_heartbeat', ARGV[5])
    redis.call('EXPIRE', KEYS[4], ARGV[6])
end
redis.call('SET', KEYS[5], ARGV[4] .. ':' .. string.format('%d', now), 'NX')
"""

MARK = """
-- The marker: set once, gone when the server has lost its memory. KEYS: marker. ARGV: new marker
-- Returns it, and the server's time in milliseconds.
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('PERSIST', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. now, 'NX')
return {redis.call('GET', KEYS[1]), now}
"""

RECOUNT = """
-- Counts anew how many tasks a queue holds: ids may have left it without a claim. KEYS: queue list, depth
-- Returns the ids in the queue.
local ids, depth = redis.call('LRANGE', KEYS[1], 0, -1), 0
for _, id in ipairs(ids) do depth = depth + tonumber(string.match(id, '%-(%d+)$') or '1') end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[2], depth)
return ids
"""

PUBLISH = """
-- Adds events of a run to the run's stream and to that of all runs, in order, each to both or, if the first has it, to none.
-- KEYS: the run's stream, the stream of all runs
-- ARGV: entries that the first keeps, its TTL, entries that the second keeps, then for each event: id, number of the texts that
--       follow, names and values
-- Returns how many have arrived, and the id that was found at the place of the next one, '' if there is none left.
local keep = tonumber(ARGV[1])
local function parts(id) return tonumber(string.match(id, '^(%d+)')), tonumber(string.match(id, '(%d+)$')) end
local function is_above(one, other)
    local ms, n = parts(one)
    local other_ms, other_n = parts(other)
    return ms > other_ms or (ms == other_ms and n > other_n)
end
local function is_deleted(id)
    -- Redis 7 says what a reader has deleted; before, nobody knows.
    local info = redis.call('XINFO', 'STREAM', KEYS[1])
    for i = 1, #info, 2 do
        if info[i] == 'max-deleted-entry-id' then return not is_above(id, info[i + 1]) end
    end
    return false
end
local function has(id, fields)
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    if entry then return table.concat(entry[2], '\\0') == table.concat(fields, '\\0') and #entry[2] == #fields end
    -- Among `keep` newer ones it would be trimmed at once: that is what has happened to it.
    local newer = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    return (newer and is_above(newer[1], id) and redis.call('XLEN', KEYS[1]) >= keep) or is_deleted(id)
end
local arg, arrived = 4, 0
while arg <= #ARGV do
    local id, count = ARGV[arg], tonumber(ARGV[arg + 1])
    local fields = {unpack(ARGV, arg + 2, arg + 1 + count)}
    local added = redis.pcall('XADD', KEYS[1], 'MAXLEN', '=', ARGV[1], id, unpack(fields))
    if type(added) ~= 'table' then
        redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(fields))
    elseif not string.find(added.err, 'equal or smaller', 1, true) then
        if arrived > 0 then break end
        return added
    elseif not has(id, fields) then
        local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
        return {arrived, top and top[1] or 'none'}
    end
    arg, arrived = arg + 2 + count, arrived + 1
end
if arrived > 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return {arrived, ''}
"""
