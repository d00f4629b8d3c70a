"use strict";
// Sends a picture to the server of this page and shows its answer. Names are set as text; `near` and `map` are HTML in
// which the server has escaped what comes from outside.

const part = (id) => document.getElementById(id);
const { token, limit } = document.body.dataset;
const empty = { classes: [], near: "", map: part("map").innerHTML };
let asked = 0; // the answer to an earlier picture comes too late

function element(name, text = "", css = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = css;
  return made;
}

function show(answer, problem = "") {
  part("best").textContent = answer.classes.length ? answer.classes[0][0] : "";
  part("bars").replaceChildren(
    ...answer.classes.flatMap(([name, share]) => {
      const track = element("dd", "", "track");
      const fill = element("span", "", "fill");
      fill.style.width = `${100 * share}%`;
      track.append(fill);
      return [element("dt", name), track, element("dd", `${Math.round(100 * share)}%`, "value")];
    }),
  );
  part("near").innerHTML = answer.near;
  part("map").innerHTML = answer.map;
  part("said").textContent = problem;
  part("said").hidden = !problem;
}

function picture(file) {
  if (part("picture").src) URL.revokeObjectURL(part("picture").src);
  if (file) part("picture").src = URL.createObjectURL(file);
  else part("picture").removeAttribute("src");
  part("picture").hidden = part("remove").hidden = !file;
}

async function answered(file) {
  if (file.size > Number(limit)) return { refused: `The file has more than ${limit >> 20} MiB. Shrink it first.` };
  try {
    const answer = await fetch("classify", { method: "POST", body: file, headers: { "X-Token": token } });
    const said = await answer.text();
    return said.startsWith("{") ? JSON.parse(said) : { refused: `Not answered: ${said}.` };
  } catch {
    return { refused: "The server does not answer. Is it still running?" };
  }
}

async function take(files) {
  if (!files.length) return;
  const mine = ++asked;
  picture(files[0]);
  show(empty);
  document.body.classList.add("busy");
  const answer = await answered(files[0]);
  if (mine !== asked) return;
  document.body.classList.remove("busy");
  if (answer.refused) picture(null);
  show(answer.refused ? empty : answer, answer.refused);
}

function clear() {
  asked++;
  document.body.classList.remove("busy");
  picture(null);
  show(empty);
  part("files").focus();
}

part("files").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // the same file may be chosen again
});
part("remove").addEventListener("click", clear);
document.addEventListener("paste", (event) => take(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault(); // anywhere on the page: the browser would leave it to show the file
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files);
});
