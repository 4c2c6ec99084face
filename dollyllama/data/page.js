// Samples token by token. Text goes in as text: a row may hold HTML.
function sampleViewer() {
  const data = JSON.parse(find("#sample-data").textContent);
  if (!data.samples.length) return;
  const [source, side, cut, edges] = ["#source", "#side", "#cut", "#edges"].map((id) => find(id));
  const names = [...new Set(data.samples.map((each) => each.source))];
  for (const name of ["all", ...names]) source.append(new Option(name, name));
  let place = 0;

  // Sources in turn, so that a few steps show them all.
  function inTurn(samples) {
    const own = names.map((name) => samples.filter((each) => each.source === name));
    const turns = Math.max(...own.map((each) => each.length));
    return Array.from({ length: turns }, (_, turn) => own.map((each) => each[turn])).flat().filter(Boolean);
  }

  const matching = () => inTurn(data.samples.filter((each) =>
    (source.value === "all" || each.source === source.value)
    && each.side === side.value && (!cut.checked || each.truncated)));

  // Line feeds are seen as such: they are tokens too.
  const visible = (text) => text.replaceAll("\n", "↵\n");

  function token(sample, number) {
    const id = sample.ids[number];
    const learnt = sample.spans.some(([start, stop]) => start <= number && number < stop);
    const made = document.createElement("span");
    made.className = learnt ? "learnt" : "masked";
    made.textContent = visible(sample.texts[number]);
    made.title = `token ${number}, id ${id}, ${learnt ? "with a loss" : "no loss"}`;
    return made;
  }

  function show(step = 0) {
    const samples = matching();
    place = samples.length ? (place + step + samples.length) % samples.length : 0;
    const sample = samples[place];
    find("#place").textContent = sample ? `${place + 1} of ${samples.length}` : "none";
    find("#about").textContent = sample
      ? `${sample.source} row ${sample.row} · ${sample.length} tokens, ${sample.supervised} with a loss` : "";
    const pane = find("#sample");
    pane.replaceChildren(...(sample ? sample.ids.map((_, number) => token(sample, number)) : []));
    if (!sample) return;
    const rest = sample.length - sample.ids.length;
    const notes = [];
    if (rest) notes.push(`${rest} more tokens`);
    if (sample.truncated) notes.push(`cut at ${data.max_length} tokens`);
    if (!notes.length) return;
    const note = document.createElement("span");
    note.className = "note";
    note.textContent = `✂ ${notes.join(", ")}`;
    pane.append(note);
  }

  for (const control of [source, side, cut]) {
    control.addEventListener("change", () => { place = 0; show(); });
  }
  edges.addEventListener("change", () => find("#sample").classList.toggle("edges", edges.checked));
  find("#previous").addEventListener("click", () => show(-1));
  find("#next").addEventListener("click", () => show(1));
  show();
  find(".viewer").hidden = false;
}

// Refused rows of one source at a time.
function sourceChips() {
  const chips = find("#source-chips");
  if (!chips) return;
  chips.addEventListener("change", (event) => {
    for (const reason of findAll(".reason")) {
      const rows = findAll("article", reason);
      for (const row of rows) row.hidden = event.target.value !== "" && row.dataset.source !== event.target.value;
      reason.hidden = rows.every((row) => row.hidden);
    }
  });
  chips.hidden = false;
}

// A link to what is folded up unfolds it, which not every browser does by itself.
function unfoldTargets() {
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = target && target.closest("details");
    if (!folded) return;
    find("#source-chips input").click();
    folded.open = true;
    folded.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();
}

for (const part of [themeButton, sampleViewer, sourceChips, unfoldTargets]) part();
document.documentElement.dataset.ready = "yes";
