'use strict';

const seconds = 120;
const $ = id => document.getElementById(id);
const number = new Intl.NumberFormat('en');
const history = []; // of {at, sold, distinct}
let state = null;
let rating = false; // the slider is being moved

// What each button asks for. One voucher that is still to come is the poisonous one.
const faults = {
  'fault-up': () => ({ mode: 'up' }),
  'fault-down': () => ({ mode: 'down' }),
  'fault-slow': () => ({ mode: 'slow', delay: '2s' }),
  'fault-fail': () => ({ mode: 'fail' }),
  'fault-some': () => ({ mode: 'fail', share: 0.33 }),
  'fault-refuse': () => ({ mode: 'refuse', share: 0.1 }),
  'fault-poison': () => ({ mode: 'hang', poison: [state ? state.sold + state.unknown + 2 : 1] }),
};

async function ask(method, path, body) {
  const answer = await fetch(path, {
    method, body: body && JSON.stringify(body), headers: body && { 'Content-Type': 'application/json' },
  });
  const json = await answer.json();
  if (!answer.ok) throw new Error(json.message);
  return json;
}

// act does what a button is for, after what was clicked before, and says what went wrong.
let acting = Promise.resolve();
function act(what) {
  acting = acting.then(async () => {
    try {
      await what();
      $('problem').textContent = '';
    } catch (e) {
      $('problem').dataset.from = 'button';
      $('problem').textContent = e.message;
    }
    await refresh();
  });
  return acting;
}

function pressed(f) {
  if (f.mode === 'up') return 'fault-up';
  if (f.poison) return 'fault-poison';
  if (f.mode === 'fail' && f.share) return 'fault-some';
  return 'fault-' + f.mode;
}

function duration(s) {
  if (s < 1) return Math.round(s * 1000) + ' ms';
  return s < 60 ? s.toFixed(1) + ' s' : Math.floor(s / 60) + ' min ' + Math.round(s % 60) + ' s';
}

function tile(id, bad) {
  $(id).classList.toggle('bad', bad);
  $(id).classList.toggle('good', !bad);
}

function show(s) {
  state = s;
  for (const [id, n] of [['sold', s.sold], ['received', s.distinct], ['missing', s.missing], ['repeated', s.repeated], ['out-of-order', s.out_of_order]]) {
    $(id).textContent = number.format(n);
  }
  const dead = Object.entries(s.dead_letters);
  $('dead').textContent = number.format(s.set_aside);
  $('dead-why').textContent = dead.length ? dead.map(([reason, n]) => `${n} ${reason.replaceAll('_', ' ')}`).join(', ') + ' in all' : 'set aside, with a reason';
  $('missing-why').textContent = s.missing === 0 ? 'sold and not received'
    : s.set_aside >= s.missing ? 'dead letters: nothing is lost' : `on the way${s.set_aside ? `, but ${s.set_aside} dead letters` : ''}`;
  tile('missing-tile', s.missing > 0);
  tile('order-tile', s.out_of_order > 0);
  tile('dead-tile', s.set_aside > 0);

  $('register').textContent = s.register_error ? 'does not answer' : `sells ${s.rate} a second` + (s.unknown > 1 ? `, ${s.unknown} not acknowledged yet` : '');
  $('subscription').textContent = !s.joined ? 'not subscribed yet' : `${s.subscription || 'known'}, ${number.format(s.lag)} behind` + (s.redriving ? ', redrives' : '');
  const works = s.faults.mode === 'up';
  $('shop').textContent = works ? 'works' : `${document.querySelector('#' + pressed(s.faults)).textContent.toLowerCase()}; kept out ${number.format(s.struck)}`;
  $('shop-stop').classList.toggle('broken', !works);
  for (const b of document.querySelectorAll('#faults button')) {
    const is = b.id === pressed(s.faults);
    b.setAttribute('aria-pressed', is);
    if (is) $('says').textContent = b.dataset.says;
  }
  if (!rating) {
    $('rate').value = s.rate;
    $('rate-now').textContent = s.rate;
  }
  $('wait').textContent = duration(s.longest_wait_seconds);

  $('newest').replaceChildren(...s.newest.toReversed().slice(0, 8).map(d => {
    const row = document.createElement('tr');
    row.classList.toggle('again', d.again);
    for (const text of [d.number, d.key, d.id.split('/').slice(0, 3).join(' / '), d.again ? 'again' : d.attempt, duration(d.waited_seconds)]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));

  const now = Date.now();
  if (history.length && history.at(-1).run !== s.run) history.length = 0;
  if (!history.length || now - history.at(-1).at > 800) { // a button asks in between
    history.push({ at: now, run: s.run, sold: s.sold, distinct: s.distinct });
  }
  while (history[0].at < now - seconds * 1000) history.shift();
  draw(now);
}

function draw(now) {
  const rates = [];
  for (let i = 1; i < history.length; i++) {
    const a = history[i - 1], b = history[i], took = (b.at - a.at) / 1000;
    if (took > 0) rates.push({ x: 600 - (now - b.at) / (seconds * 1000) * 600, sold: (b.sold - a.sold) / took, received: (b.distinct - a.distinct) / took });
  }
  const top = Math.max(1, ...rates.map(r => Math.max(r.sold, r.received)));
  for (const what of ['sold', 'received']) {
    $('chart-' + what).setAttribute('points', rates.map(r => `${r.x.toFixed(1)},${(117 - Math.max(0, r[what]) / top * 112).toFixed(1)}`).join(' '));
  }
  $('chart-top').textContent = number.format(Math.round(top));
}

async function refresh() {
  try {
    show(await ask('GET', 'state'));
    if ($('problem').dataset.from === 'state') $('problem').textContent = '';
  } catch (e) {
    $('problem').dataset.from = 'state';
    $('problem').textContent = 'The web shop does not answer: ' + e.message;
  }
}

for (const [id, body] of Object.entries(faults)) $(id).addEventListener('click', () => act(() => ask('POST', 'faults', body())));
$('redrive').addEventListener('click', () => act(() => ask('POST', 'redrive')));
$('anew').addEventListener('click', () => act(() => ask('DELETE', 'state')));
$('rate').addEventListener('input', () => { rating = true; $('rate-now').textContent = $('rate').value; });
$('rate').addEventListener('change', () => act(async () => {
  await ask('POST', 'rate', { rate: Number($('rate').value) });
  rating = false;
}));

(async function loop() {
  for (;;) {
    await refresh();
    await new Promise(done => setTimeout(done, 1000));
  }
})();
