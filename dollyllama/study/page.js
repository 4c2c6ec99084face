// Loss curves: each variant that is switched on takes the first free of six colours.
function curveChips() {
  const inks = ["ink1", "ink2", "ink3", "ink4", "ink5", "ink6"];
  for (const box of findAll("#curves input")) {
    const chip = box.closest("label");
    const curve = findAll("#curves .curve").find((each) => each.dataset.curve === box.value);
    box.addEventListener("change", () => {
      const taken = findAll("#curves .chip").map((each) => each.className);
      const ink = inks.find((name) => !taken.some((names) => names.includes(name)));
      if (box.checked && !ink) {
        box.checked = false;
        return;
      }
      for (const each of [chip, curve]) {
        each.classList.remove(...inks);
        if (box.checked) each.classList.add(ink);
      }
      curve.toggleAttribute("hidden", !box.checked);
    });
  }
}

// One family of metrics at a time.
function familyChips() {
  const chips = find("#family-chips");
  if (!chips) return;
  const tables = findAll(".family");
  const show = (chosen) => tables.forEach((table, number) => { table.hidden = number !== chosen; });
  chips.addEventListener("change", (event) => show(Number(event.target.value)));
  show(0);
  chips.hidden = false;
}

// Tables that a click on a heading sorts; cells without a value stay at the end.
function sortableTables() {
  for (const table of findAll("table.sortable")) {
    const headings = findAll("thead th", table);
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const rising = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach((each) => each.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const body = find("tbody", table);
        const keyed = findAll("tr", body).map((row) => {
          const cell = row.cells[column];
          return [cell.dataset.key ?? cell.textContent, row];
        });
        keyed.sort(([a], [b]) => {
          if (a === "" || b === "") return (a === "") - (b === "");
          const numbers = [Number(a), Number(b)];
          const order = numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
          return rising ? order : -order;
        });
        body.append(...keyed.map(([, row]) => row));
      });
    });
  }
}

// Answers of two variants to one question. Text goes in as text: an answer may hold HTML.
function sampleViewer() {
  const holder = find("#sample-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const names = Object.keys(data.answers).sort(
    (a, b) => (b === data.baseline) - (a === data.baseline) || a.localeCompare(b),
  );
  const [left, right, source] = ["#left", "#right", "#source"].map((id) => find(id));
  const option = (select, value) => select.append(new Option(value, value));
  for (const name of names) [left, right].forEach((select) => option(select, name));
  right.value = names[1] ?? names[0];
  for (const name of ["all", ...new Set(data.questions.map((each) => each.source))]) option(source, name);
  find("#seed").textContent = `seed ${data.seed}`;
  let place = 0;

  const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];

  // Which words of a are not in the longest common subsequence with b.
  function differing(a, b) {
    const [m, n] = [a.length, b.length];
    if (m * n > 250000) return new Set();
    const length = Array.from({ length: m + 1 }, () => new Uint16Array(n + 1));
    for (let i = m - 1; i >= 0; i--) {
      for (let j = n - 1; j >= 0; j--) {
        length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
      }
    }
    const found = new Set();
    for (let i = 0, j = 0; i < m;) {
      if (j < n && a[i] === b[j]) { i++; j++; }
      else if (j < n && length[i][j + 1] >= length[i + 1][j]) j++;
      else found.add(i++);
    }
    return found;
  }

  function fill(side, name, answer, other) {
    const label = find(`#${side}-label`);
    const pane = find(`#${side}-answer`);
    label.textContent = `${name} `;
    pane.textContent = answer ? "" : "no answer in this variant";
    if (!answer) return;
    const own = words(answer.text);
    const marked = other ? differing(own, words(other.text)) : new Set();
    own.forEach((word, number) => {
      if (!marked.has(number) || !word.trim()) return pane.append(word);
      const mark = document.createElement("mark");
      mark.textContent = word;
      pane.append(mark);
    });
    const shown = document.createElement("small");
    const about = data.questions[place];
    const head = data.heads[about.source];
    const kept = [head, "stops", "tokens"].filter((score) => score in answer.scores);
    shown.textContent = kept.map((score) => `${score} ${+answer.scores[score].toFixed(2)}`).join(" · ");
    label.append(shown);
  }

  function matching() {
    const [a, b] = [data.answers[left.value], data.answers[right.value]];
    return data.questions.map((_, number) => number).filter((number) =>
      (source.value === "all" || data.questions[number].source === source.value)
      && (!find("#differing").checked || a[number]?.text !== b[number]?.text));
  }

  function show(step = 0) {
    const choices = matching();
    const output = find("#place");
    if (!choices.length) {
      output.textContent = "none";
      for (const id of ["#prompt", "#reference", "#left-answer", "#right-answer"]) find(id).textContent = "";
      return;
    }
    const now = choices.indexOf(place);
    const next = now < 0 ? 0 : (now + step + choices.length) % choices.length;
    place = choices[next];
    output.textContent = `${next + 1} of ${choices.length}`;
    const question = data.questions[place];
    const instruction = question.prompt.match(/### Instruction:\n([^]*?)\n*### Response:\s*$/);
    find("#prompt").textContent = instruction ? instruction[1] : question.prompt;
    find("#reference").textContent = question.reference;
    const [a, b] = [data.answers[left.value][place], data.answers[right.value][place]];
    fill("left", left.value, a, b);
    fill("right", right.value, b, a);
  }

  for (const control of [left, right, source, find("#differing")]) control.addEventListener("change", () => show());
  find("#previous").addEventListener("click", () => show(-1));
  find("#next").addEventListener("click", () => show(1));
  show();
  find(".viewer").hidden = false;
}

for (const part of [themeButton, curveChips, familyChips, sortableTables, sampleViewer]) part();
document.documentElement.dataset.ready = "yes";
